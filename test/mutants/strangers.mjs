// Nothing of the library waits for what a stranger's transaction holds.
const SQL = 'lib/storage/migrations/0001_initial';
const STRANGERS_SPEC = 'test/invariants/strangers.spec.ts';
const AUDIT = 'test/faults/lock-audit.spec.ts';

export const STRANGERS = [
  {
    name: 'passing over a queue whose row others hold',
    edits: [
      {
        file: `${SQL}/2_claim.sql`,
        find: 'when n.limited then exists (\n                select from job_queues q where q.name = n.queue for no key update skip locked)',
        put: 'when n.limited then exists (\n                select from job_queues q where q.name = n.queue for no key update)',
      },
    ],
    checks: [{ spec: AUDIT }, { spec: STRANGERS_SPEC, only: 'holds a queue' }],
  },
  {
    name: 'passing over jobs that others hold in a claim',
    edits: [
      {
        file: `${SQL}/2_claim.sql`,
        find: 'order by j.run_at, j.id\n          limit open_places\n          for update skip locked',
        put: 'order by j.run_at, j.id\n          limit open_places\n          for update',
      },
    ],
    checks: [{ spec: AUDIT }, { spec: STRANGERS_SPEC, only: 'holds a waiting job without a queue' }],
  },
  {
    name: 'settling the rest of a batch apart from what others hold',
    edits: [
      {
        file: `${SQL}/3_settle.sql`,
        find: 'limit 1 for update skip locked\n    ) held\n  );\nend $$;\n\n-- Ends a settle',
        put: 'limit 1 for update\n    ) held\n  );\nend $$;\n\n-- Ends a settle',
      },
    ],
    checks: [{ spec: AUDIT }, { spec: STRANGERS_SPEC, only: 'holds a running job' }],
  },
  {
    name: 'the time limit of a keyed add that waits for others',
    edits: [
      {
        file: `${SQL}/7_enqueue.sql`,
        find: `  if not patient then
    perform pg_catalog.set_config('lock_timeout'::text, '100ms'::text, true);
  end if;
  -- New jobs`,
        put: '  -- New jobs',
      },
    ],
    checks: [{ spec: 'test/manager/strangers-in-the-way.spec.ts', only: 'waits for it on no connection' }],
  },
  {
    name: 'cancelling the others where one job is held',
    edits: [
      {
        file: `${SQL}/3_settle.sql`,
        find: 'select j.id from jobs j where j.id = i.id limit 1 for update skip locked',
        put: 'select j.id from jobs j where j.id = i.id limit 1 for update',
      },
    ],
    checks: [{ spec: AUDIT }, { spec: STRANGERS_SPEC, only: 'holds a running job' }],
  },
  {
    name: 'ending the claims of others where one job is held',
    edits: [
      {
        file: `${SQL}/3_settle.sql`,
        find: 'limit 1 for update skip locked\n  ) held;\n  select array_agg(p.queue)',
        put: 'limit 1 for update\n  ) held;\n  select array_agg(p.queue)',
      },
    ],
    checks: [{ spec: STRANGERS_SPEC, only: 'holds the job of a dead pool' }],
  },
];
