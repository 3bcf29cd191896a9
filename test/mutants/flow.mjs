// Partitions, pauses, windows and batches: what random lives of pools and operators find when it is taken out.
const SQL = 'lib/storage/migrations/0001_initial';
const FLOW = { spec: 'test/invariants/flow.spec.ts', only: 'with seed 20250101' };
const BATCHES = 'test/worker/batches.spec.ts';

export const FLOWS = [
  {
    name: 'flow: counting the places of a partition against its limit',
    edits: [
      {
        file: `${SQL}/2_claim.sql`,
        find: 'select limits.most - taken.places, limits.part - taken.places',
        put: 'select limits.most, limits.part - taken.places',
      },
    ],
    checks: [FLOW],
  },
  {
    name: 'flow: taking the earliest of a partition',
    edits: [
      {
        file: `${SQL}/2_claim.sql`,
        find: '    order by j.run_at, j.id limit 500\n  ) seen\n',
        put: '    order by j.run_at desc, j.id desc limit 500\n  ) seen\n',
      },
    ],
    checks: [FLOW],
  },
  {
    name: 'flow: reading what is paused in each claim',
    edits: [{ file: `${SQL}/2_claim.sql`, find: '  if not has_pauses then\n', put: '  if true then\n' }],
    checks: [FLOW],
  },
  {
    name: 'flow: leaving alone the tasks that are paused',
    edits: [
      {
        file: `${SQL}/2_claim.sql`,
        find: `array_agg(p.name) filter (where p.kind = 'task'), min(p.until)`,
        put: 'null::text[], min(p.until)',
      },
    ],
    checks: [
      { spec: 'test/invariants/commands.spec.ts', only: 'lives as the model says with seed 20250101' },
      { spec: 'test/invariants/interleavings.spec.ts', only: 'a pause of task' },
    ],
  },
  {
    name: 'flow: leaving alone everything where that is paused',
    edits: [
      {
        file: `${SQL}/2_claim.sql`,
        find: `coalesce(bool_or(p.kind <> 'task'), false), array_agg`,
        put: 'false, array_agg',
      },
    ],
    checks: [{ spec: 'test/invariants/interleavings.spec.ts', only: 'a pause of everything' }, FLOW],
  },
  {
    name: 'flow: passing over a partition that is paused',
    edits: [
      { file: `${SQL}/2_claim.sql`, find: `when s.is_paused then 'partition paused'`, put: `when false then ''` },
    ],
    checks: [FLOW],
  },
  {
    name: 'flow: passing over a queue that is paused',
    edits: [
      {
        file: `${SQL}/2_claim.sql`,
        find: `      when is_in_force(q.paused, q.paused_until, present) then 'paused'\n`,
        put: '',
      },
      {
        file: `${SQL}/2_claim.sql`,
        find: '                when is_in_force(q.paused, q.paused_until, present) then 0\n',
        put: '',
      },
    ],
    checks: [FLOW],
  },
  {
    name: 'flow: waiting for the claims that are under way when something is paused',
    edits: [
      {
        file: 'lib/manager/job.pauses.ts',
        find: `if (key.kind !== 'queue' && !isBound) await this.awaitClaims();`,
        put: '',
      },
    ],
    checks: [{ spec: 'test/manager/pauses.spec.ts', only: 'when pause has resolved' }, FLOW],
  },
  {
    name: 'flow: leaving alone what comes while a window is open',
    edits: [
      {
        file: `${SQL}/7_enqueue.sql`,
        find: `is_open := held.until > present and held.set_at <= present + interval '1 min';`,
        put: 'is_open := false;',
      },
    ],
    checks: [FLOW],
  },
  {
    name: 'flow: settling each job of a batch once',
    edits: [
      {
        file: 'lib/worker/worker.pool.ts',
        find: '      else engine.batcher.add(attempt);\n    }\n    if (engine.batcher.isFull)',
        put: '      else engine.batcher.add(attempt);\n      engine.batcher.add(attempt);\n    }\n    if (engine.batcher.isFull)',
      },
    ],
    checks: [FLOW],
  },
  {
    name: 'flow: gathering by what jobs have in common',
    edits: [
      {
        file: 'lib/worker/gathering.batch.ts',
        find: 'return `${job.task}\\0${groupOf(job, options)}`;',
        put: 'return job.task;',
      },
    ],
    checks: [FLOW],
  },
  {
    name: 'flow: closing a batch that is full',
    edits: [
      {
        file: 'lib/worker/job.buffer.ts',
        find: 'if (batch.isFull) this.open.delete(batch.key!);',
        put: '',
      },
    ],
    checks: [FLOW, { spec: BATCHES }],
  },
  {
    name: 'flow: running a job alone that has crashed',
    edits: [{ file: 'lib/worker/gathering.batch.ts', find: '  if (job.crashes > 0) return null;\n', put: '' }],
    checks: [{ spec: BATCHES, only: 'that was running when its process died runs alone' }],
  },
  {
    name: 'flow: settling what was decided where the handler of a batch never ends',
    edits: [
      {
        file: 'lib/worker/worker.pool.ts',
        find: 'if (!idle) for (const attempt of this.engine.runner.takeDecided()) this.engine.batcher.add(attempt);',
        put: '',
      },
    ],
    checks: [{ spec: BATCHES, only: 'keeps what was decided of it' }],
  },
  {
    name: 'flow: leaving alone the limited tasks that a pool has a handler for and does not take',
    edits: [
      {
        file: 'lib/worker/claim.plan.ts',
        find: 'free > 0 && (this.tasks?.includes(task) ?? true)',
        put: 'free > 0',
      },
    ],
    checks: [{ spec: 'test/worker/pool.spec.ts', only: 'takes only its tasks' }],
  },
];
