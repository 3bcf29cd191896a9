// No due job waits for ever, and none starves another: readiness is computed at the claim, what is left to do is a state.
const SQL = 'lib/storage/migrations/0001_initial';
const COMMANDS = 'test/invariants/commands.spec.ts';
const INTERLEAVINGS = 'test/invariants/interleavings.spec.ts';
const LANES = 'test/manager/lanes.spec.ts';

export const READINESS = [
  {
    name: 'the sweep that tells children of a completed parent',
    edits: [
      {
        file: `${SQL}/4_ends.sql`,
        find: `end_of_parent(s.parent_id) in ('completed', 'gone') or exists (`,
        put: `end_of_parent(s.parent_id) = 'gone' or exists (`,
      },
    ],
    checks: [{ spec: 'test/invariants/deaths.spec.ts', only: 'completing jobs leaves' }],
  },
  {
    name: 'remembering which job took the place of another under its key',
    edits: [
      {
        file: `${SQL}/7_enqueue.sql`,
        find: `if action in ('replace', 'follow') then`,
        put: `if action = 'follow' then`,
      },
    ],
    checks: [
      { spec: INTERLEAVINGS, only: 'add its key and add a child of a job that is waiting' },
      { spec: 'test/invariants/keys.spec.ts' },
    ],
  },
  {
    name: 'keeping the body of a parent while a child is added',
    edits: [
      {
        file: 'lib/storage/statements/dependencies.ts',
        find: 'where b.id = any($1::uuid[]) order by b.id for key share',
        put: 'where b.id = any($1::uuid[]) order by b.id',
      },
    ],
    checks: [
      { spec: INTERLEAVINGS, only: 'add its key and add a child of a job that is waiting' },
      { spec: 'test/manager/strangers-in-the-way.spec.ts', only: 'the body of a parent' },
    ],
  },
  {
    name: 'looking again at a lane of which others held a job',
    edits: [
      {
        file: 'lib/manager/lane.memory.ts',
        find: 'if (held.has(laneAtPlace(place))) this.positions.delete(place);',
        put: 'if (held.size < 0) this.positions.delete(place);',
      },
    ],
    checks: [
      { spec: 'test/manager/settles-that-claim.spec.ts', only: 'is not passed over' },
      { spec: 'test/worker/filled-places.spec.ts', only: 'goes to a job that was passed' },
      { spec: LANES, only: 'whose head others hold' },
    ],
  },
  {
    name: 'the time limit of what a pool remembers of lanes',
    edits: [
      {
        file: 'lib/manager/lane.memory.ts',
        find: 'if (now - this.forgottenAt > this.costs.periodMs) this.startOver();',
        put: '',
      },
    ],
    checks: [{ spec: LANES }],
  },
  {
    name: 'passing what this pool does not take at the head of a lane',
    edits: [
      {
        file: `${SQL}/2_claim.sql`,
        find: 'order by j.run_at, j.id limit 500\n  ) seen',
        put: 'order by j.run_at, j.id limit 1\n  ) seen',
      },
    ],
    checks: [
      { spec: COMMANDS, only: 'lives as the model says with seed 20250101' },
      { spec: COMMANDS, only: 'finds what a look at everything would find, with seed 20250101' },
      { spec: LANES, only: 'whose head is for other pools' },
    ],
  },
  {
    name: 'hopping over a full queue',
    edits: [
      {
        file: `${SQL}/2_claim.sql`,
        find: 'where h.lane is not null and (h.got < open_places or h.filled)',
        put: `where h.lane is not null and h.state is distinct from 'full' and (h.got < open_places or h.filled)`,
      },
    ],
    checks: [
      { spec: COMMANDS, only: 'lives as the model says with seed 20250101' },
      { spec: COMMANDS, only: 'finds what a look at everything would find, with seed 20250101' },
    ],
  },
  {
    name: 'the loop of waitForJob ending in the turn in which it decides to',
    edits: [
      {
        file: 'lib/manager/job.waiter.ts',
        find: '    this.looping = false;\n  }',
        put: '    await Promise.resolve();\n    this.looping = false;\n  }',
      },
    ],
    checks: [{ spec: 'test/manager/waiting.spec.ts', only: 'for one job after the other' }],
  },
  {
    name: 'leaving tasks at their own limit out of claims',
    edits: [
      {
        file: 'lib/worker/pool.engine.ts',
        find: 'taskRooms: () => this.admission.rooms(() => this.queue.jobs()),',
        put: 'taskRooms: () => [],',
      },
    ],
    checks: [{ spec: 'test/worker/queue.spec.ts', only: 'tasks with a limit of their own' }],
  },
  {
    name: 'failing a job that cannot be read apart from the rest of its claim',
    edits: [
      {
        file: 'lib/manager/job.claims.ts',
        find: 'if (!error) read.jobs.push(job);',
        put: 'if (error) throw error;\n      if (!error) read.jobs.push(job);',
      },
    ],
    checks: [{ spec: 'test/invariants/regressions.spec.ts', only: 'a job that cannot be handed out' }],
  },
];
