// Functions of the schema give up after 100 ms where another session has locked a table as a whole. In a transaction of a
// caller's, or of a handler's, that would end everything done before. So it locks the function's tables first, in the modes in
// which the function does, and waits for as long as its own lock_timeout says.
import { statement, type Statement } from './statement.js';

interface Tables {
  writes?: string[];
  /** And those of which a worker's role may change some columns alone. */
  reads?: string[];
}

const END = ['jobs', 'job_places', 'job_history', 'settle_receipts', 'workers'];
const TELL = ['jobs', 'job_keys', 'job_dependencies', 'job_bodies', 'job_history', 'job_replacements'];
const CLAIM = ['jobs', 'job_bodies', 'workers'];
/** What claims look at first. */
const PAUSES = ['job_pauses'];
const LIMITS = ['rate_limits', 'rate_limit_states'];

/** By statement. Those that no caller's transaction runs have none: a spec lists them. */
const TABLES: Record<string, Tables> = {
  complete_jobs: { writes: [...END, 'job_dependencies'] },
  end_attempts: { writes: [...END, 'rate_limit_blocks'] },
  cancel_jobs: { writes: ['jobs', 'job_history'] },
  save_step: { writes: ['jobs', 'job_steps'] },
  free_successors: { writes: ['jobs', 'job_history'] },
  free_keys: { writes: ['jobs', 'job_keys'] },
  tell_children: { writes: TELL },
  tell_these_children: { writes: TELL },
  find_bulk_page: { reads: ['jobs', 'job_bodies', 'job_history'] },
  find_circle_of: { reads: ['jobs', 'job_dependencies', 'job_replacements'] },
  pause_target: { writes: PAUSES },
  pause_queue: { writes: ['job_queues'], reads: ['job_partitions'] },
  resume_target: { writes: PAUSES },
  resume_queue: { writes: ['job_queues'] },
  edit_queue: { writes: ['jobs', 'job_places', 'job_queues'], reads: ['job_partitions'] },
  edit_partition: { writes: ['jobs', 'job_places', 'job_queues', 'job_partitions'] },
  list_partitions: { reads: ['jobs', 'job_queues', 'job_partitions', 'job_places'] },
  bound_queue: { writes: ['job_queues'], reads: ['job_partitions'] },
  register_rate_limit: { writes: LIMITS, reads: ['rate_limit_blocks'] },
  refill_rate_limits: { writes: ['rate_limit_states', 'rate_limit_blocks'], reads: ['rate_limits'] },
  claim_plain_jobs: { writes: CLAIM, reads: PAUSES },
  claim_lane_jobs: {
    writes: [...CLAIM, 'job_queues', 'job_places', 'rate_limit_states'],
    reads: ['rate_limits', 'rate_limit_blocks', 'job_partitions', ...PAUSES],
  },
  next_plain_priority: { reads: ['jobs', ...PAUSES] },
  find_expired_leases: { reads: ['jobs'] },
  end_incarnations: { writes: ['jobs', 'workers'] },
  claims_of_the_dead: { writes: ['workers'], reads: ['jobs'] },
  find_passed_over: { reads: ['jobs'] },
  find_untold: { reads: TELL },
  find_circles: { reads: ['jobs', 'job_dependencies', 'job_replacements'] },
  free_stale_keys: { writes: ['job_keys'], reads: ['jobs'] },
  prune_windows: { writes: ['job_windows'] },
  free_places: { writes: ['job_places'], reads: ['jobs'] },
};

/** The arguments of `holdTables` for a statement: tables to write, tables to read; null: it waits for them itself. */
export function awaitedTables({ name }: Statement<unknown>): [writes: string[], reads: string[]] | null {
  const tables = TABLES[name];
  return tables ? [tables.writes ?? [], tables.reads ?? []] : null;
}

/** By a function, because outside of a transaction LOCK TABLE would fail. There it holds nothing, and nothing is lost. */
export const holdTables = statement('hold_tables', (schema) => `select ${schema}.hold_tables($1::text[], $2::text[])`);
