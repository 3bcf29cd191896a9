// Retention, roles, payloads, steps: what is kept, what each role may do, and what belongs to an attempt.
const SQL = 'lib/storage/migrations/0001_initial';
const REGRESSIONS = 'test/invariants/regressions.spec.ts';
const PARTITIONS = 'test/maintenance/partitions.spec.ts';
const STEPS = 'test/worker/steps.spec.ts';
const ENDS = 'test/worker/attempt-ends.spec.ts';
const DATABASES = 'test/storage/databases.spec.ts';
const UNCHECKED = 'test/wiring/unchecked-payloads.spec.ts';

export const LIFE = [
  {
    name: 'the record of a completion that follows a cancellation',
    edits: [
      {
        file: `${SQL}/3_settle.sql`,
        find: 'where keep or g.cancel_requested or g.ended_before',
        put: 'where keep or g.cancel_requested',
      },
    ],
    checks: [{ spec: REGRESSIONS, only: 'counts as completed' }],
  },
  {
    name: 'counting a job once that many records of the history name',
    edits: [
      {
        file: `${SQL}/6_partitions.sql`,
        find: '(select distinct h.job_id from job_history h',
        put: '(select h.job_id from job_history h',
      },
    ],
    checks: [{ spec: PARTITIONS, only: 'of jobs that the history remembers stay' }],
  },
  {
    name: 'counting a job once that many receipts name',
    edits: [
      {
        file: `${SQL}/6_partitions.sql`,
        find: '(select distinct settled.id from settle_receipts r',
        put: '(select settled.id from settle_receipts r',
      },
    ],
    checks: [{ spec: PARTITIONS, only: 'however many receipts others have' }],
  },
  {
    name: 'deciding what to drop on a snapshot that is younger than the lock',
    edits: [
      {
        file: `${SQL}/6_partitions.sql`,
        find: `if current_setting('transaction_isolation') <> 'read committed' then`,
        put: 'if false then',
      },
      {
        file: 'lib/storage/pool.sessions.ts',
        find: `const BEGIN = 'begin isolation level read committed';`,
        put: `const BEGIN = 'begin';`,
      },
    ],
    checks: [{ spec: 'test/storage/isolation-levels.spec.ts' }],
  },
  {
    name: 'bringing times that SQL adds within what JavaScript can hold',
    edits: [
      {
        file: `${SQL}/1_tables.sql`,
        find: `as $$ select least(greatest(at, '0001-01-02 00:00:00+00'), '275759-12-31 00:00:00+00') $$`,
        put: 'as $$ select at $$',
      },
      {
        file: `${SQL}/1_tables.sql`,
        find: `run_at < '275760-01-01 00:00:00+00'),\n`,
        put: `run_at < '275760-01-01 00:00:00+00' or true),\n`,
      },
      {
        file: `${SQL}/1_tables.sql`,
        find: `run_at < '275760-01-01 00:00:00+00')\n)`,
        put: `run_at < '275760-01-01 00:00:00+00' or true)\n)`,
      },
    ],
    checks: [{ spec: DATABASES, only: 'keep no other job from running' }],
  },
  {
    name: 'qualified and typed calls in what runs with the rights of the owner',
    edits: [
      {
        file: `${SQL}/7_enqueue.sql`,
        find: `coalesce(pg_catalog.cardinality(spec.depends_on), 0),\n      before_it`,
        put: 'coalesce(cardinality(spec.depends_on), 0),\n      before_it',
      },
    ],
    checks: [{ spec: DATABASES, only: 'nothing that runs with the rights of the owner' }],
  },
  {
    name: 'temporary tables coming last in the functions’ search path',
    edits: [
      {
        file: 'lib/storage/jobs.migrator.ts',
        find: 'return `${this.database.quotedSchema}, pg_temp`;',
        put: 'return this.database.quotedSchema;',
      },
    ],
    says: /of relation "job_bodies" does not exist/,
    checks: [
      { spec: 'test/storage/add-job.spec.ts', only: 'takes nothing of its caller' },
      { spec: 'test/worker/transactional.spec.ts', only: 'settles whatever tables' },
    ],
  },
  {
    name: 'the warning of payloads that are not checked',
    edits: [
      { file: 'lib/jobs.explorer.ts', find: 'if (!this.untyped.length) return;', put: 'if (this.untyped) return;' },
    ],
    checks: [{ spec: UNCHECKED }],
  },
  {
    name: 'hearing of the failure of a step that nothing awaits',
    edits: [
      {
        file: 'lib/worker/running.attempt.ts',
        find: 'const ended = hearFailure(child, remember);',
        put: 'const ended = Promise.resolve(remember);',
      },
    ],
    checks: [{ spec: ENDS, only: 'transactional: false.*fails with the reason of a step that failed unseen' }],
  },
  {
    name: 'waiting for steps under way before the attempt is settled',
    edits: [
      {
        file: 'lib/worker/running.attempt.ts',
        find: 'if (!this.over) add((this.children ??= new Set()), ended);',
        put: '',
      },
    ],
    checks: [{ spec: ENDS, only: 'waits for steps that its handler does not await' }],
  },
  {
    name: 'forgetting the steps of a payload that was replaced',
    edits: [
      {
        file: `${SQL}/7_enqueue.sql`,
        find: 'where b.id = holder.id;\n      delete from job_steps s where s.job_id = holder.id;\n      delete from job_progress p where p.job_id = holder.id;\n      update job_keys',
        put: 'where b.id = holder.id;\n      update job_keys',
      },
    ],
    checks: [{ spec: STEPS, only: 'of a keyed job whose payload is replaced' }],
  },
  {
    name: 'reading the steps of a transaction from the database',
    edits: [{ file: 'lib/worker/job.steps.ts', find: 'if (this.executor) return this.read();', put: '' }],
    checks: [{ spec: ENDS, only: 'in a savepoint that was rolled back' }],
  },
  {
    name: 'a position for each step of those side by side',
    edits: [
      {
        file: 'lib/worker/job.steps.ts',
        find: 'position: this.nextPosition++',
        put: 'position: (await this.load()).size',
      },
    ],
    checks: [{ spec: STEPS, only: 'have an order of their own' }],
  },
  {
    name: 'an async context for each attempt',
    edits: [
      {
        file: 'lib/worker/job.runner.ts',
        find: 'return scope.runInAsyncScope(() =>\n      this.begin(new RunningAttempt(job, this.parts.jobs, this.parts.workerId, scope)),\n    );',
        put: 'return this.begin(new RunningAttempt(job, this.parts.jobs, this.parts.workerId, scope));',
      },
    ],
    checks: [{ spec: 'test/worker/contexts.spec.ts' }],
  },
];
