// A claim is (job, fence), a worker is an incarnation, and a pool asks before it believes.
const SQL = 'lib/storage/migrations/0001_initial';
const REGRESSIONS = 'test/invariants/regressions.spec.ts';
const RESTORES = 'test/faults/restores.spec.ts';
const INTERLEAVINGS = 'test/invariants/interleavings.spec.ts';
const LOST_CLAIMS = 'test/worker/lost-claims.spec.ts';

export const CLAIMS = [
  {
    name: 'the fence in completions of one batch',
    edits: [
      {
        file: `${SQL}/3_settle.sql`,
        find: 'from deleted d left join input i on i.id = d.id and i.fence = d.fence',
        put: 'from deleted d left join input i on i.id = d.id',
      },
    ],
    checks: [{ spec: REGRESSIONS, only: 'names a job more than once' }],
  },
  {
    name: 'the fence in failures of one batch',
    edits: [
      {
        file: `${SQL}/3_settle.sql`,
        find: ') i on i.id = h.id and (i.fence is null or i.fence = h.fence)',
        put: ') i on i.id = h.id',
      },
    ],
    checks: [{ spec: REGRESSIONS, only: 'names a job more than once' }],
  },
  {
    name: 'telling the holder of a claim that others have ended, by NOTIFY',
    edits: [
      {
        file: 'lib/manager/claim.ends.ts',
        find: `...(running.length ? [{ kind: 'ended', ids: running } as const] : []),`,
        put: '',
      },
    ],
    checks: [{ spec: LOST_CLAIMS, only: 'at once, by LISTEN' }],
  },
  {
    name: 'asking for the held claims with each heartbeat',
    edits: [{ file: 'lib/worker/heartbeat.ts', find: 'void this.checkClaims();', put: '' }],
    checks: [{ spec: LOST_CLAIMS, only: 'with the next heartbeat' }],
  },
  {
    name: 'aborting what runs for a claim that is over',
    edits: [
      {
        file: 'lib/worker/pool.engine.ts',
        find: `this.runner.abort(id, standing === 'gone' ? new LeaseLostError(id) : cancelled(reason), fence);`,
        put: `if (standing !== 'gone') this.runner.abort(id, cancelled(reason), fence);`,
      },
    ],
    checks: [{ spec: RESTORES, only: 'another claim holds a job that runs' }],
  },
  {
    name: 'failing a transactional attempt that has ended its own claim',
    edits: [
      {
        file: 'lib/worker/transactional.run.ts',
        find: 'return failed(endedItself(attempt.job.id));',
        put: 'return { ...attempt, settled: result };',
      },
    ],
    checks: [{ spec: 'test/worker/transactional.spec.ts', only: 'that ends its own claim' }],
  },
  {
    name: 'an incarnation for each start of a pool',
    edits: [
      { file: 'lib/worker/worker.identity.ts', find: 'return this.current;', put: 'return this.label;' },
      { file: 'lib/worker/worker.identity.ts', find: 'holder: this.current', put: 'holder: this.label' },
    ],
    checks: [{ spec: LOST_CLAIMS, only: 'with the same worker id' }],
  },
  {
    name: 'the look for claims before an incarnation signs off',
    edits: [
      {
        file: `${SQL}/5_upkeep.sql`,
        find: 'where w.id = any(silent) and (only_worker is null or not exists (',
        put: 'where w.id = any(silent) and (true or not exists (',
      },
    ],
    checks: [
      { spec: 'test/invariants/commands.spec.ts', only: 'lives as the model says with seed 20250101' },
      { spec: INTERLEAVINGS, only: 'a pool that signs off' },
    ],
  },
  {
    name: 'the lock by which a claim and the end of its incarnation exclude each other',
    edits: [
      {
        file: `${SQL}/2_claim.sql`,
        find: `if not pg_try_advisory_xact_lock_shared(
    case when by_hand then lock_named('claims by hand', '') else lock_named('incarnation', worker) end) then`,
        put: 'if false then',
      },
    ],
    checks: [{ spec: INTERLEAVINGS, only: 'a pool that signs off' }],
  },
  {
    name: 'dropping the buffer of a pool that was taken for dead',
    edits: [{ file: 'lib/worker/pool.engine.ts', find: 'this.queue.dropAll();', put: '' }],
    checks: [{ spec: LOST_CLAIMS, only: 'of what its buffer held' }],
  },
  {
    name: 'asking whether the lease holds before each claim and each job',
    edits: [
      {
        file: 'lib/worker/pool.engine.ts',
        find: "const mayStart = (): boolean => this.circuit === 'closed' && this.heartbeat.holds;",
        put: "const mayStart = (): boolean => this.circuit === 'closed';",
      },
    ],
    checks: [{ spec: LOST_CLAIMS, only: 'could not renew its lease in time' }],
  },
];
