// What the lock audit runs: each statement with arguments that meet rows, and what it locks or changes, by tables.
import * as addJobs from '../../lib/storage/statements/add-jobs.js';
import * as attempts from '../../lib/storage/statements/attempts.js';
import * as claims from '../../lib/storage/statements/claim-jobs.js';
import * as bulk from '../../lib/storage/statements/bulk-actions.js';
import * as byHand from '../../lib/storage/statements/claims-by-hand.js';
import * as crontabs from '../../lib/storage/statements/crontabs.js';
import * as dependencies from '../../lib/storage/statements/dependencies.js';
import * as edits from '../../lib/storage/statements/edit-jobs.js';
import * as revivals from '../../lib/storage/statements/revive-jobs.js';
import * as ends from '../../lib/storage/statements/end-jobs.js';
import * as inspections from '../../lib/storage/statements/inspect-jobs.js';
import * as partitions from '../../lib/storage/statements/partitions.js';
import * as garbage from '../../lib/storage/statements/prune-jobs.js';
import * as pauses from '../../lib/storage/statements/pauses.js';
import * as queues from '../../lib/storage/statements/queues.js';
import * as limits from '../../lib/storage/statements/rate-limits.js';
import { SEALED_COLUMNS } from '../../lib/storage/statements/reencrypt.js';
import * as releases from '../../lib/storage/statements/releases.js';
import * as settles from '../../lib/storage/statements/settle-jobs.js';
import * as testing from '../../lib/storage/statements/testing.js';
import * as waiting from '../../lib/storage/statements/wait-jobs.js';
import * as workers from '../../lib/storage/statements/workers.js';
import type { Statement } from '../../lib/storage/database.js';
import type { AddJobOptions, ClaimedJob, JobManager } from '../../lib/index.js';
import { type TestManager, WORKER } from '../support/manager.js';
import { claimAsPool, registerPool } from '../support/pool.claims.js';

const modules = [
  addJobs,
  attempts,
  claims,
  byHand,
  bulk,
  crontabs,
  dependencies,
  edits,
  revivals,
  ends,
  inspections,
  partitions,
  garbage,
  pauses,
  queues,
  limits,
  releases,
  settles,
  testing,
  waiting,
  workers,
];

/** Whatever looks like a statement among what the library's modules export. */
export const STATEMENTS: Statement<unknown>[] = [
  ...modules.flatMap((module) => Object.values(module as Record<string, unknown>)).filter(isStatement),
  ...SEALED_COLUMNS.flatMap(({ find, replace, count }) => [find, replace, count]),
];

function isStatement(value: unknown): value is Statement<unknown> {
  return typeof (value as { text?: unknown } | null)?.text === 'function';
}

const HOUR = 3_600_000;
export const LIVING = 'pool-that-lives';
export const DEAD = 'pool-that-died';

type Name =
  | ('running' | 'plain' | 'dead' | 'byHand' | 'holder' | 'follower' | 'waiting' | 'keyed' | 'exhausted')
  | ('lost' | 'cancelled' | 'completed' | 'parent' | 'child' | 'ended' | 'orphan' | 'fresh' | 'other' | 'due' | 'next');

const BULK = '0190a000-0000-7000-8000-00000000000b';

export interface Scene {
  ids: Record<Name, string>;
  fences: Record<string, string>;
  claimed: ClaimedJob[];
  /** Of the default partitions. */
  oids: Record<'job_bodies' | 'job_history', string>;
  /** A partition of bodies. */
  partition: string;
}

/** One of each kind, with all that can hang on it. */
export async function setScene({ jobs, sql }: TestManager): Promise<Scene> {
  const ids = {} as Scene['ids'];
  const add = async (name: Name, options: AddJobOptions = {}, task = 't'): Promise<string> =>
    (ids[name] = (await jobs.addJob(task, { name }, options)).id);
  await jobs.registerRateLimit('l', 100, HOUR);
  await jobs.configureQueue('q', { concurrency: 5 });
  await jobs.pause({ task: 'paused' }, { reason: 'why', by: 'who' });
  await jobs.configureQueue('u', { concurrency: Infinity });
  await jobs.scheduleCron({ id: 'c', task: 't', schedule: '* * * * * *', payload: {} });
  for (const pool of [LIVING, DEAD]) await registerPool(jobs, pool, HOUR);
  await add('running', { queue: 'q', rateLimitKey: 'l' });
  await add('plain');
  await add('holder', { jobKey: 'h' });
  const claimed = await claimAsPool(jobs, LIVING);
  await add('dead');
  claimed.push(...(await claimAsPool(jobs, DEAD)));
  await add('byHand');
  claimed.push(...(await jobs.getJobs(WORKER, { leaseMs: 1 })));
  await add('follower', { jobKey: 'h' });
  await add('other');
  await add('ended');
  await add('completed');
  const completed = await jobs.getJobs(WORKER, { batchSize: 3 });
  await jobs.completeJobs(WORKER, completed.slice(1), 1);
  await jobs.snoozeJob(WORKER, completed[0]!, HOUR);
  await add('waiting', { queue: 'q', rateLimitKey: 'l' });
  await add('exhausted', { jobKey: 'e' });
  await add('lost', { jobKey: 'x' });
  await add('cancelled', { jobKey: 'y' });
  await jobs.permanentlyFailJobs([ids.exhausted, ids.lost]);
  await jobs.cancelJobs([ids.cancelled]);
  await add('due');
  await jobs.configureQueue('n', { concurrency: 1 });
  await add('next', { queue: 'n' });
  await add('parent', { delayMs: HOUR });
  await add('child', { dependsOn: [ids.parent] });
  await add('keyed', { jobKey: 'k', dependsOn: [ids.parent] });
  await add('orphan', { dependsOn: [ids.parent] });
  ids.fresh = '0190a000-0000-7000-8000-000000000001';
  await jobs.engine.retention.makePartitions();
  await hangThingsOn(sql, ids);
  const [oids] = await sql(
    `select 'jobs.job_bodies_default'::regclass::oid as job_bodies, 'jobs.job_history_default'::regclass::oid as job_history`,
  );
  const [first] = await sql(
    `select name from jobs.partitions_of('job_bodies') where ends_at is not null order by starts_at limit 1`,
  );
  const partition = first!.name as string;
  return {
    ids,
    oids: oids as Scene['oids'],
    partition,
    fences: Object.fromEntries(claimed.map(({ id, fence }) => [id, fence])),
    claimed,
  };
}

/** What the library leaves behind in time, or where a process died. */
async function hangThingsOn(sql: TestManager['sql'], ids: Scene['ids']): Promise<void> {
  const all = `unnest('{${Object.values(ids).join()}}'::uuid[]) id`;
  const old = `clock_timestamp() - interval '200 days'`;
  await sql(`insert into jobs.job_steps (job_id, name, position, fence) select id, 's', 1, 1 from ${all}`);
  await sql(`insert into jobs.job_progress (job_id, value) select id, '1' from ${all} where id <> '${ids.plain}'`);
  await sql(`insert into jobs.job_logs (job_id, fence, message) select id, 1, 'm' from ${all}`);
  await sql(`update jobs.job_dependencies set parent_id = '${ids.ended}' where child_id = '${ids.orphan}'`);
  await sql(
    `insert into jobs.claims_in_question values ('${LIVING}', '${ids.holder}', 1), ('gone', '${ids.plain}', 9)`,
  );
  await sql(`insert into jobs.settle_receipts values (${old}, array['${ids.fresh}'::uuid], array[1], null)`);
  await sql(`insert into jobs.job_windows values ('throttle:w', ${old}, ${old}, ${old}, '${ids.keyed}')`);
  await sql(`insert into jobs.job_replacements values ('${ids.fresh}', '${ids.keyed}', ${old})`);
  await sql(`insert into jobs.job_places values ('q', 0, gen_random_uuid(), 1)`);
  await sql(`insert into jobs.job_keys values ('stale', gen_random_uuid())`);
  await sql(`insert into jobs.job_queues (name) values ('idle')`);
  await sql(`insert into jobs.job_tasks values ('gone', ${old})`);
  await sql(`insert into jobs.releases values ('r', ${old}, ${old}, '{label}')`);
  await sql(`update jobs.workers set heartbeat_at = ${old} where id = '${DEAD}'`);
  await sql(`insert into jobs.workers (id, label, host, pid, concurrency, lease_ms, heartbeat_at, stopped_at, tasks, environment)
    values ('stopped', 's', 'h', 1, 1, 1, ${old}, ${old}, '{}', '{}')`);
  await sql(`update jobs.jobs set locked_at = ${old} where locked_by = '${LIVING}' and id <> '${ids.plain}'`);
  await sql(`update jobs.rate_limit_states set at = at - interval '1 day', full_at = full_at - interval '1 day'`);
  await sql(`insert into jobs.rate_limit_blocks values ('l', 'of', ${old}, ${old}, '${ids.plain}', 1)`);
  await sql(`update jobs.job_bodies set created_at = ${old} where id in ('${ids.completed}', '${ids.cancelled}')`);
  await sql(`insert into jobs.job_bodies (id, created_at, run_at, priority, max_attempts, task, payload)
    values ('0190a000-0000-7000-8000-000000000002', ${old}, ${old}, 0, 1, 't', '1')`);
  await sql(`update jobs.job_history set expires_at = ${old} where job_id in ('${ids.completed}', '${ids.cancelled}')`);
  await sql(`update jobs.jobs set locked_by = 'stopped', crashes = 4 where id = '${ids.dead}'`);
  await sql(`update jobs.jobs set lease_expires_at = clock_timestamp() + interval '1 hour' where id = '${ids.byHand}'`);
  await sql(`update jobs.crontabs set known_since = clock_timestamp() - interval '30 s'`);
  await sql(`insert into jobs.crontabs (id, task, schedule, time_zone, payload, options, declared, release)
    values ('d', 't', '0 0 1 1 *', 'UTC', '1', '{}', true, 'r')`);
  await sql(`insert into jobs.job_bulk_actions (id, action, filter, settings, asked_by, last_id)
    values ('${BULK}', 'cancel', '{}', '{}', 'b', '${ids.next}')`);
  await sql(`insert into jobs.job_bulk_actions (id, action, filter, settings, asked_by, last_id, state, finished_at)
    values (gen_random_uuid(), 'cancel', '{}', '{}', 'b', '${ids.next}', 'completed', ${old})`);
  await comeFromTheFuture(sql, ids);
  const sealed = Object.values(OWNERS).map(({ table, column }) => `update jobs.${table} set ${column} = '"old"'`);
  for (const text of sealed) await sql(text);
}

/** What a clock that was ahead has left behind. */
async function comeFromTheFuture(sql: TestManager['sql'], ids: Scene['ids']): Promise<void> {
  const later = `clock_timestamp() + interval '200 days'`;
  await sql(`insert into jobs.crontabs (id, task, schedule, time_zone, payload, options, known_since)
    values ('ahead', 't', '0 0 1 1 *', 'UTC', '1', '{}', ${later})`);
  await sql(`insert into jobs.releases values ('ahead', ${later}, ${later}, '{label}')`);
  await sql(`insert into jobs.job_tasks values ('ahead', ${later})`);
  await sql(`insert into jobs.workers (id, label, host, pid, concurrency, lease_ms, heartbeat_at, stopped_at, tasks, environment)
    values ('ahead', 's', 'h', 1, 1, 1, ${later}, ${later}, '{}', '{}')`);
  await sql(`insert into jobs.job_queues (name, declared_at) values ('ahead', ${later})`);
  await sql(`insert into jobs.settle_receipts values (${later}, array['${ids.fresh}'::uuid], array[1], null)`);
  await sql(
    `insert into jobs.job_replacements values ('0190a000-0000-7000-8000-000000000003', '${ids.keyed}', ${later})`,
  );
  await sql(`update jobs.jobs set updated_at = ${later} where id = '${ids.parent}'`);
}

type Field = (typeof SEALED_COLUMNS)[number]['field'];

/** A value of each column that may be encrypted. */
const OWNERS: Record<
  Field,
  { table: string; column: string; owner: (scene: Scene) => string; part: string | null; old: string }
> = {
  payload: { table: 'job_bodies', column: 'payload', owner: ({ ids }) => ids.waiting, part: null, old: '"old"' },
  previous: { table: 'jobs', column: 'previous', owner: ({ ids }) => ids.waiting, part: null, old: '"old"' },
  result: { table: 'job_history', column: 'result', owner: ({ ids }) => ids.completed, part: '1', old: '"old"' },
  partial: {
    table: 'job_history',
    column: 'partial_results',
    owner: ({ ids }) => ids.completed,
    part: '1',
    old: '"old"',
  },
  step: { table: 'job_steps', column: 'result', owner: ({ ids }) => ids.running, part: 's', old: '"old"' },
  progress: { table: 'job_progress', column: 'value', owner: ({ ids }) => ids.running, part: null, old: '"old"' },
  log: { table: 'job_logs', column: 'message', owner: ({ ids }) => ids.running, part: '1', old: '"old"' },
  crontab: { table: 'crontabs', column: 'payload', owner: () => 'c', part: null, old: '"old"' },
  filter: { table: 'job_bulk_actions', column: 'filter', owner: () => BULK, part: null, old: '"old"' },
};

interface Case {
  args: (scene: Scene) => unknown[];
  /** The tables of which it locks or changes rows, in the order of locks; none: it only reads, or only adds rows. */
  locks?: string;
  /** It belongs to an add in a caller's transaction, which waits there. */
  waits?: true;
  /** It is the testing kit's, which has its database to itself: it may wait, in any order. */
  kit?: true;
  /** It runs within transactions alone: of the library, whose waits are limited, or of callers, which say how long they wait. */
  within?: true;
  /** It waits for rows: on the library's connections for 100 ms, in a caller's transaction for as long as that one says. */
  rows?: true;
  /** It settles an attempt in the attempt's own transaction, and waits there for tables. */
  settles?: true;
}

const none = (): unknown[] => [];
const jobOf = (id: string, more: object = {}): string =>
  JSON.stringify([{ id, task: 't', priority: 0, max_attempts: 5, ...more }]);
const claimOf = ({ ids, fences }: Scene, ...names: Name[]): [string[], string[]] => [
  names.map((name) => ids[name]),
  names.map((name) => fences[ids[name]] ?? '1'),
];
const attempt = (scene: Scene, name: Name): unknown[] => claimOf(scene, name).flat();
const anyLane = [LIVING, 10, null, null, null, null, null, null, null, []];
const laneArguments = anyLane.concat([
  [],
  [],
  [],
  [],
  [],
  [],
  [],
  [],
  null,
  [],
  [],
  [],
  [],
  [],
  null,
  null,
  200,
] as never[]);
const pages = ['(0,0)', '(1000,0)'];
const AT = new Date(Date.now() + 400 * 86_400_000);
const ANY_ID = ['00000000-0000-0000-0000-000000000000', 'ffffffff-ffff-ffff-ffff-ffffffffffff'];

export const CASES: Record<string, Case> = {
  // Adds
  add_jobs: { args: ({ ids }) => [jobOf(ids.fresh), '[1]'], waits: true, locks: '' },
  add_alike_jobs: {
    args: ({ ids }) => [`{${ids.fresh}}`, '1', 't', 0, 5, null, null, null],
    waits: true,
    locks: '',
  },
  add_and_tell: {
    args: ({ ids }) => [jobOf(ids.fresh), '[1]', 'channel', '["x"]'],
    waits: true,
    within: true,
    locks: '',
  },
  add_alike_and_tell: {
    args: ({ ids }) => [`{${ids.fresh}}`, '1', 't', 0, 5, null, null, null, 'channel', '["x"]'],
    waits: true,
    within: true,
    locks: '',
  },
  add_keyed_jobs: {
    args: ({ ids }) => [
      `[${jobOf(ids.fresh, { job_key: 'fresh' }).slice(1, -1)},${jobOf(crypto.randomUUID(), { job_key: 'k' }).slice(1, -1)}]`,
      '[1,1]',
      true,
      false,
    ],
    waits: true,
    locks: 'job_keys jobs job_dependencies job_bodies job_steps job_progress job_logs job_replacements',
  },
  add_windowed_jobs: {
    args: ({ ids }) => [
      `[${jobOf(ids.fresh, { window_key: 'throttle:fresh', window_ms: 1_000, window_mode: 'drop', job_key_mode: 'unique' }).slice(1, -1)},${jobOf(
        crypto.randomUUID(),
        { job_key: 'k', window_key: 'throttle:w', window_ms: 1_000, window_mode: 'drop' },
      ).slice(1, -1)}]`,
      '[1,1]',
      true,
      false,
    ],
    waits: true,
    locks: 'job_windows job_keys jobs job_dependencies job_bodies job_steps job_progress job_logs job_replacements',
  },
  find_window_jobs: { args: () => [['w']] },
  publish_news: { args: () => ['channel', ['x']] },
  find_key_owners: { args: () => [['k']] },
  find_jobs_of_keys: { args: () => [['k']] },
  find_missing_limits: { args: () => [['limit']] },
  find_parents: { args: ({ ids }) => [[ids.parent]] },
  keep_parents: { args: ({ ids }) => [[ids.parent]], waits: true, locks: 'job_bodies' },
  has_others_to_tell: { args: ({ ids }) => [[ids.parent]] },
  link_parents: {
    args: ({ ids }) => [
      [ids.child, ids.waiting],
      [ids.due, ids.parent],
    ],
    waits: true,
    locks: '',
  },
  find_family: { args: ({ ids }) => [ids.child, 10] },
  find_circle_of: { args: ({ ids }) => [[ids.child]] },

  // Attempts
  assert_owned: { args: (scene) => attempt(scene, 'running'), locks: 'jobs' },
  find_steps: { args: ({ ids }) => [ids.running] },
  save_step: { args: (scene) => [...attempt(scene, 'running'), 's', 1, null], locks: 'job_steps' },
  forget_steps: { rows: true, args: (scene) => [...attempt(scene, 'running'), ['s']], locks: 'job_steps' },
  save_progress: { args: (scene) => [...claimOf(scene, 'running', 'plain'), ['1', '2']], locks: 'job_progress' },
  add_logs: { args: (scene) => [...claimOf(scene, 'running'), ['m']], locks: '' },
  find_logs: { args: ({ ids }) => [ids.running, null, 10] },

  // Claims
  claim_plain_jobs: {
    args: () => [LIVING, 10, 65_536, null, null, null, null, null, [], [], [], null, null],
    locks: 'jobs',
  },
  claim_lane_jobs: {
    args: () => [...laneArguments, []],
    locks: 'job_queues rate_limit_states jobs',
  },
  next_plain_priority: { args: () => [-5] },
  find_claims_of: { args: () => [[LIVING]] },
  find_claim_at: { args: ({ ids }) => [ids.running, 1] },
  find_expired_leases: { args: () => [null] },
  extend_lease: { args: ({ ids }) => [WORKER, ids.byHand], locks: 'jobs' },

  // Ends
  complete_jobs: {
    args: (scene) => [null, LIVING, ...claimOf(scene, 'running', 'plain'), [1, 1], null, true, HOUR, null, true, false],
    locks: 'jobs job_places',
  },
  complete_and_claim: {
    args: (scene) => [
      LIVING,
      ...claimOf(scene, 'running', 'plain'),
      [1, 1],
      null,
      true,
      HOUR,
      ...laneArguments,
      0,
      'n\x1f\x1f',
      null,
      null,
    ],
    locks: 'job_queues jobs job_places',
  },
  end_attempts: {
    args: (scene) => [null, LIVING, JSON.stringify(failuresOf(scene, 'running', 'dead')), true, true, HOUR, null, null],
    locks: 'jobs job_places',
  },
  complete_within: {
    args: (scene) => [null, LIVING, ...claimOf(scene, 'running', 'plain'), [1, 1], null, true, HOUR, null, true],
    settles: true,
    locks: 'jobs job_places',
  },
  end_within: {
    args: (scene) => [null, LIVING, JSON.stringify(failuresOf(scene, 'running', 'dead')), true, true, HOUR, null, null],
    settles: true,
    locks: 'jobs job_places',
  },
  find_settled: { args: (scene) => [LIVING, ...claimOf(scene, 'running'), [1]] },
  find_passed_over: { args: () => [ANY_ID[0]] },
  free_successors: { args: ({ ids }) => [[ids.holder], null, HOUR], locks: 'jobs' },
  free_keys: { args: () => [['stale', 'k']], locks: 'job_keys' },
  free_stale_keys: { args: () => [''], locks: 'job_keys' },
  tell_children: { args: ({ ids }) => [[ids.ended], HOUR], locks: 'jobs job_dependencies' },
  tell_these_children: { args: ({ ids }) => [[ids.ended], HOUR, [ids.orphan]], locks: 'jobs job_dependencies' },
  prune_windows: { args: () => [100], locks: 'job_windows' },
  find_untold: { args: () => [ANY_ID[0]] },
  find_circles: { args: none },
  free_places: { args: () => ['', 0], locks: 'job_places' },

  // An operator's hand
  cancel_jobs: { args: ({ ids }) => [[ids.running, ids.waiting], 'x', HOUR], locks: 'jobs' },
  reschedule_jobs: { args: ({ ids }) => [[ids.running, ids.waiting], null, 3, 7, []], locks: 'jobs job_bodies' },
  find_retryable: { args: ({ ids }) => [[ids.exhausted, ids.cancelled]] },
  find_revivable: { args: ({ ids }) => [[ids.exhausted], 7] },
  claim_free_keys: { args: ({ ids }) => [['fresh'], [ids.cancelled]], within: true, locks: '' },
  lock_keys: { args: () => [['k', 'x']], within: true, locks: 'job_keys' },
  lock_jobs: { args: ({ ids }) => [[ids.exhausted]], within: true, locks: 'jobs' },
  keep_bodies: { args: ({ ids }) => [[ids.cancelled]], within: true, locks: 'job_bodies' },
  take_keys: { args: ({ ids }) => [['stale'], [ids.cancelled]], within: true, locks: 'job_keys' },
  forget_successors: { args: ({ ids }) => [[ids.fresh]], within: true, locks: 'job_replacements' },
  retry_jobs: { args: ({ ids }) => [[ids.exhausted, ids.cancelled]], within: true, locks: 'jobs' },
  find_parents_of: { args: ({ ids }) => [[ids.child]] },
  relink_parents: { args: ({ ids }) => [[ids.child, ids.orphan]], within: true, locks: 'jobs' },
  find_jobs_to_replay: { args: () => [new Date(0), AT, null] },
  take_jobs_to_replay: { args: ({ ids }) => [[ids.exhausted]], within: true, locks: 'jobs' },
  lock_purged: { args: () => ['completed', 0], within: true, locks: 'job_bodies' },
  purge_jobs: {
    args: ({ ids }) => [[ids.completed], 'completed'],
    within: true,
    locks: 'job_bodies job_steps job_progress job_logs job_history',
  },

  // Bulk actions
  add_bulk_action: {
    args: () => [crypto.randomUUID(), 'cancel', '{}', '{}', 'b', null, null],
    locks: '',
  },
  find_bulk_action: { args: () => [BULK] },
  list_bulk_actions: { args: () => [null, 10] },
  stop_bulk_action: { rows: true, args: () => [BULK], locks: 'job_bulk_actions' },
  next_bulk_page: { args: none },
  take_bulk_action: { args: none },
  find_bulk_page: { args: () => ['live', ...ANY_ID, '{}', ['available'], AT, 10, 100] },
  count_bulk_source: { args: () => ['exhausted'] },
  bulk_matches: { args: ({ ids }) => [[ids.waiting], '{}', ['available'], AT] },
  lock_bulk_jobs: { args: ({ ids }) => [[ids.waiting, ids.completed], 'update'], locks: 'jobs job_bodies' },
  try_lock_keys: { args: () => [['k', 'x']], within: true, locks: 'job_keys' },
  move_jobs: { args: ({ ids }) => [[ids.waiting, ids.running], 'n'], locks: 'jobs job_bodies' },
  move_bulk_action: {
    args: () => [BULK, 0, null, null, 0, 1, 1, 0, 0, null, 0, false],
    within: true,
    locks: 'job_bulk_actions',
  },
  put_off_bulk_action: { rows: true, args: () => [BULK, 0, 'x', 1, 10], locks: 'job_bulk_actions' },
  prune_bulk_actions: { args: () => [HOUR], locks: 'job_bulk_actions' },
  begin_part: { args: none, within: true },
  keep_part: { args: none, within: true },
  undo_part: { args: none, within: true },

  // Looking
  find_jobs: { args: ({ ids }) => [[ids.running]] },
  find_results: { args: ({ ids }) => [[ids.running]] },
  list_jobs: { args: () => [null, null, null, null, null, null, null, null, null, null, 10, null] },
  job_history: { args: ({ ids }) => [ids.completed] },
  list_history: { args: () => [null, null, null, null, null, null, null, null, null, 10] },
  count_jobs: { args: none },
  explain_job: { args: ({ ids }) => [ids.waiting] },
  find_ended: { args: ({ ids }) => [[ids.running]] },
  list_queues: { args: () => [null] },
  find_queues: { args: () => [null] },
  list_workers: { args: none },

  // Queues and rate limits
  register_queues: { args: () => [['q', 'fresh']], locks: '' },
  declare_queue: { args: () => ['idle', 3, '{}', 'r', 7], locks: 'job_queues' },
  find_undeclared_queues: { args: () => [['q'], [1], null, ['{}'], [7]] },
  bound_queue: { args: () => ['u', 5], locks: 'job_queues' },
  find_queue_bounds: { args: () => [['u']] },
  edit_queue: { args: () => ['u', 2, false, null], locks: 'job_queues' },
  edit_partition: { args: () => ['q', 'p', 2, null, null], locks: 'job_queues' },
  list_partitions: { args: () => ['q', 10, null, 10] },
  pause_target: { args: () => ['task', 'paused', '', null, 'why', 'who'], locks: 'job_pauses' },
  pause_queue: { args: () => ['queue', 'q', '', null, 'why', 'who'], locks: 'job_queues' },
  resume_target: { args: () => ['task', 'paused', ''], locks: 'job_pauses' },
  resume_queue: { args: () => ['queue', 'q', ''] },
  claims_under_way: { args: () => [null] },
  list_pauses: { args: none },
  find_pauses: { args: () => [LIVING, [], []] },
  prune_queues: { args: () => [[]], locks: 'job_queues' },
  register_rate_limit: { args: () => ['l', 'fixed', 7, 1_000, null, 7], locks: 'rate_limits rate_limit_states' },
  take_tokens: { args: () => ['l', '', 1, true], waits: true, locks: 'rate_limit_states' },
  list_rate_limits: { args: () => [10, null] },
  list_values_of_limit: { args: () => ['l', 10, null] },
  refill_rate_limits: { args: none, locks: 'rate_limit_states rate_limit_blocks' },

  // Crontabs and releases
  put_crontab: { rows: true, args: () => ['c', 't', '0 0 1 1 *', 'UTC', '1', '{}', 0, 'skip'], locks: 'crontabs' },
  declare_crontab: {
    rows: true,
    args: () => ['d', 't', '0 0 1 1 *', 'UTC', '1', '{}', 0, 'skip', 'r', 'content', true],
    locks: 'crontabs',
  },
  find_undeclared_crontabs: { args: () => [['d'], ['content']] },
  drop_crontab: { rows: true, args: () => ['c'], locks: 'crontabs' },
  retire_crontabs: { args: () => ['r', ['t'], []], locks: 'crontabs' },
  list_crontabs: { args: none },
  list_cron_timings: { args: none },
  lock_crontab: { args: () => ['c'], locks: 'crontabs' },
  is_crontab_busy: { args: ({ ids }) => [ids.running] },
  advance_crontab: { args: ({ ids }) => ['c', Date.now(), ids.running], within: true, locks: 'crontabs' },
  join_release: { rows: true, args: () => ['r', 'label-2'], locks: 'releases' },
  leave_releases: { rows: true, args: () => ['label'], locks: 'releases' },
  prune_releases: { args: none, locks: 'releases' },

  // Pools
  register_worker: {
    rows: true,
    args: () => ['fresh', 'l', 'h', 1, 1, HOUR, ['t'], false, null, null, '{}', null, '{}'],
    locks: '',
  },
  leave_incarnation: { rows: true, args: () => [LIVING], locks: 'workers' },
  heartbeat: { args: () => [LIVING], locks: 'workers' },
  end_incarnations: { args: () => [null], locks: 'workers' },
  claims_of_the_dead: { args: () => [5], locks: 'workers' },
  check_claims: { args: (scene) => claimOf(scene, 'running') },
  unknown_claims: { args: (scene) => [LIVING, ...claimOf(scene, 'plain'), '', 0], locks: 'claims_in_question' },
  unknown_claims_anywhere: { args: (scene) => [LIVING, ...claimOf(scene, 'plain')] },
  set_back_times: {
    args: none,
    locks: 'crontabs releases job_tasks workers job_queues settle_receipts job_replacements',
  },
  audit_claims: { args: () => [0, 1_000], locks: 'jobs claims_in_question' },
  take_duty: { rows: true, args: () => ['sweep', HOUR], locks: 'duties' },
  put_off_duty: { args: () => ['sweep', HOUR], locks: 'duties' },
  find_duty_position: { args: () => ['sweep'] },
  move_duty: { args: () => ['sweep', '{}'], locks: 'duties' },

  // Garbage
  make_partition: { args: () => ['job_bodies', 0, 72 * HOUR, HOUR, 1e9, AT], locks: 'job_bodies' },
  drop_history_partition: { args: () => [AT], locks: 'job_history' },
  old_body_partitions: { args: () => [10, AT] },
  drop_body_partition: { args: ({ partition }) => [partition, 10, AT], locks: 'job_bodies' },
  forget_notes_of_range: {
    rows: true,
    args: () => [...ANY_ID, 0],
    locks: 'job_dependencies job_steps job_progress job_logs',
  },
  default_bodies: { args: none },
  expired_history: { args: () => [null] },
  partition_holders: { args: none },
  analyze_parents: { args: none, locks: '' },
  prune_history: {
    args: ({ oids }) => [oids.job_history, new Date(0), AT, ...pages],
    locks: 'job_bodies job_steps job_progress job_logs job_history',
  },
  prune_receipts: { args: none, locks: 'settle_receipts' },
  prune_bodies: { args: ({ oids }) => [oids.job_bodies, ...ANY_ID, ...pages], locks: 'job_bodies' },
  prune_workers: { args: () => [HOUR], locks: 'workers' },
  see_tasks: { args: () => [['t', 'fresh']], locks: 'job_tasks' },
  prune_tasks: { args: () => [HOUR], locks: 'job_tasks' },
  prune_replacements: { args: none, locks: 'job_replacements' },

  // The testing kit
  move_times: {
    args: () => [1],
    kit: true,
    locks:
      'crontabs job_bulk_actions duties releases job_tasks job_pauses workers job_windows job_queues rate_limits rate_limit_states jobs job_bodies job_steps job_progress job_logs job_history settle_receipts job_replacements rate_limit_blocks',
  },
  clear_jobs: {
    args: none,
    kit: true,
    locks:
      'crontabs job_bulk_actions workers job_windows job_keys rate_limits rate_limit_states jobs job_places claims_in_question job_dependencies job_bodies job_steps job_progress job_logs job_history settle_receipts job_replacements rate_limit_blocks',
  },
  find_paused_jobs: { args: () => [null, null, null], kit: true },
  clear_configuration: { args: none, kit: true, locks: 'crontabs job_pauses job_queues rate_limits' },

  ...Object.fromEntries(SEALED_COLUMNS.flatMap(sealedCases)),
};

/**
 * What the library does where a statement gives up, because another session has locked a table as a whole, by what it does.
 * Those that are `patient` are tried again for 10 s, and then throw a RowsHeldError; those of a transaction end with it.
 */
export const ANSWERS = {
  'adds are tried again for 10 s, and then throw': [
    'add_jobs',
    'add_alike_jobs',
    'add_keyed_jobs',
    'add_windowed_jobs',
  ],
  'what is left to tell is a state, which a sweep finds': [
    'has_others_to_tell',
    'free_successors',
    'free_keys',
    'tell_children',
    'tell_these_children',
  ],
  'outcomes are kept, and come again': ['complete_jobs', 'complete_and_claim', 'end_attempts', 'find_settled'],
  'claims come again': ['claim_plain_jobs', 'claim_lane_jobs', 'next_plain_priority', 'register_queues'],
  'beats come again, and the lease goes on': ['heartbeat', 'check_claims', 'leave_incarnation', 'find_pauses'],
  'duties come again': [
    'end_incarnations',
    'claims_of_the_dead',
    'find_expired_leases',
    'set_back_times',
    'take_duty',
    'put_off_duty',
    'find_duty_position',
    'move_duty',
    'find_passed_over',
    'free_stale_keys',
    'prune_windows',
    'find_untold',
    'find_circles',
    'free_places',
    'audit_claims',
    'unknown_claims',
    'unknown_claims_anywhere',
    'refill_rate_limits',
    'list_cron_timings',
  ],
  'declarations are repeated every half minute': [
    'join_release',
    'leave_releases',
    'prune_releases',
    'declare_queue',
    'find_undeclared_queues',
    'declare_crontab',
    'find_undeclared_crontabs',
    'retire_crontabs',
  ],
  'pages of bulk actions come again': [
    'next_bulk_page',
    'take_bulk_action',
    'bulk_matches',
    'lock_bulk_jobs',
    'move_jobs',
    'put_off_bulk_action',
  ],
  'garbage is left to the next collection': [
    'prune_bulk_actions',
    'make_partition',
    'drop_history_partition',
    'old_body_partitions',
    'drop_body_partition',
    'forget_notes_of_range',
    'default_bodies',
    'expired_history',
    'partition_holders',
    'prune_history',
    'prune_bodies',
    'prune_receipts',
    'prune_replacements',
    'prune_workers',
    'see_tasks',
  ],
  'calls try again by themselves, and then throw': [
    'save_step',
    'forget_steps',
    'edit_queue',
    'bound_queue',
    'pause_target',
    'pause_queue',
    'resume_target',
    'resume_queue',
    'edit_partition',
    'register_rate_limit',
    'take_tokens',
    'put_crontab',
    'drop_crontab',
  ],
  'best effort: it is forgotten': ['save_progress', 'add_logs'],
  'a call that waits for a job asks again': ['find_ended', 'find_results'],
  'only in transactions of callers and of handlers, or of the library': [
    'assert_owned',
    'find_missing_limits',
    'find_parents',
    'keep_parents',
    'link_parents',
    'find_circle_of',
    'find_retryable',
    'find_parents_of',
    'find_jobs_to_replay',
    'lock_crontab',
    'is_crontab_busy',
  ],
};

const failuresOf = (scene: Scene, ...names: Name[]): object[] =>
  names.map((name) => ({ id: scene.ids[name], fence: scene.fences[scene.ids[name]], kind: 'failed', delay_ms: HOUR }));

/** Values that are encrypted begin like this one. */
function sealedCases({ field, find, replace, count }: (typeof SEALED_COLUMNS)[number]): [string, Case][] {
  const { table, owner, part, old } = OWNERS[field];
  return [
    [find.name, { args: () => ['"old', '"new', null, false, 10] }],
    [replace.name, { args: (scene) => [[owner(scene)], [part], [old], ['"new"']], locks: table }],
    [count.name, { args: () => ['"old', '"new'] }],
  ];
}

type Call = (jobs: JobManager, scene: Scene) => Promise<unknown>;

/** Calls of several statements, each in one transaction. */
export const CALLS: Record<string, Call> = {
  'an add with keys': (jobs) =>
    jobs.addJobs([
      { task: 't', payload: 1, jobKey: 'k' },
      { task: 't', payload: 1, jobKey: 'e' },
      { task: 't', payload: 1, jobKey: 'h', jobKeyMode: 'preserve_run_at' },
    ]),
  'an add with a key that keeps its run-at': (jobs) =>
    jobs.addJob('t', 1, { jobKey: 'k', jobKeyMode: 'preserve_run_at' }),
  'an add with windows and keys': (jobs) =>
    jobs.addJobs([
      { task: 't', payload: 1, throttle: { key: 'w', ms: 1_000 } },
      { task: 't', payload: 1, jobKey: 'k' },
      { task: 't', payload: 1, throttle: { key: 'fresh', ms: 1_000, mode: 'delay' } },
    ]),
  'an add of a child with a key': (jobs, { ids }) => jobs.addJob('t', 1, { jobKey: 'k', dependsOn: [ids.other] }),
  'an add of a child': (jobs, { ids }) => jobs.addJob('t', 1, { dependsOn: [ids.ended, ids.parent] }),
  'a retry': (jobs, { ids }) => jobs.retryJobs([ids.exhausted, ids.cancelled]),
  'a replay': (jobs) => jobs.replayFailedJobs(),
  'a purge of exhausted jobs': (jobs) => jobs.purgeJobs({ status: 'exhausted', olderThanMs: 0 }),
  'a purge of completed jobs': (jobs) => jobs.purgeJobs({ status: 'completed', olderThanMs: 0 }),
  'a change of a queue': (jobs) => jobs.configureQueue('u', { concurrency: 2 }),
  'a change of a rate limit': (jobs) => jobs.registerRateLimit('l', 3, 1_000),
};

/** Statements with a limit of their own that no caller's transaction runs, but for a collection of garbage. */
export const OF_POOLS = [
  'audit_claims',
  'bulk_matches',
  'check_claims',
  'complete_and_claim',
  'declare_queue',
  'drop_body_partition',
  'drop_history_partition',
  'lock_bulk_jobs',
  'make_partition',
  'move_jobs',
  'prune_bodies',
  'prune_history',
  'save_progress',
  'take_bulk_action',
  'unknown_claims',
  'unknown_claims_anywhere',
];
