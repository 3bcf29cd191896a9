// Claims that end without their holder's word, found by what people name: workers, ids, expired leases. They are found
// without a lock, and ended by end_attempts, one apart from the other.
import { statement } from '../database.js';
import { ms } from './job-columns.js';

export interface FoundClaim {
  id: string;
  fence: string;
}

/** $1 labels, incarnations or names of claims by hand; null: all. Reads the live table. */
export const findClaimsOf = statement<FoundClaim>(
  'find_claims_of',
  (schema) => `
  select j.id, j.fence from ${schema}.jobs j
  where j.locked_by is not null and ($1::text[] is null or j.locked_by = any($1)
    or j.locked_by in (select w.id from ${schema}.workers w where w.label = any($1)))
  order by j.id`,
  { repeatable: true, patient: true, slow: 'reads the live table' },
);

/** $1 id, $2 revision. */
export const findClaimAt = statement<FoundClaim>(
  'find_claim_at',
  (schema) => `
  select j.id, j.fence from ${schema}.jobs j
  where j.id = $1::uuid and j.revision = $2::integer and j.locked_by is not null`,
  { repeatable: true, patient: true },
);

/** Claims by hand whose lease has run out. $1: null for each claim's own lease, or the longest time in ms. */
export const findExpiredLeases = statement<FoundClaim>(
  'find_expired_leases',
  (schema) => `select id, fence from ${schema}.expired_leases($1::bigint)`,
  { repeatable: true, limited: true },
);

export interface LeaseRow {
  locked_by: string | null;
  by_hand: boolean;
  expired: boolean;
  status: string;
  cancel_reason: string | null;
  cancel_requested: boolean;
  expires_at: number | null;
}

/**
 * $1 worker, $2 job. Renews a lease by hand from the database's now. Returns where the job stands; `expires_at` is
 * null where the lease was not extended: also where an open transaction holds the job.
 */
export const extendLease = statement<LeaseRow>(
  'extend_lease',
  (schema) => `
  with held as materialized (
    select j.id from ${schema}.jobs j where j.id = $2::uuid and j.locked_by = $1 for update skip locked
  ),
  extended as (
    update ${schema}.jobs j
    set lease_expires_at = clock_timestamp() + j.lease_ms * interval '1 ms', revision = j.revision + 1
    from held h
    where j.id = h.id and j.locked_by = $1 and j.lease_expires_at > clock_timestamp() and not j.cancel_requested
    returning j.id, j.lease_expires_at
  )
  select coalesce(w.label, j.locked_by) as locked_by, j.lease_ms is not null as by_hand,
    coalesce(j.lease_expires_at <= clock_timestamp(), false) as expired, j.cancel_requested, j.cancel_reason,
    case when j.locked_by is not null then 'running' when j.parked = 'exhausted' then 'exhausted' else 'waiting' end
      as status,
    ${ms('e.lease_expires_at')} as expires_at
  from ${schema}.jobs j left join extended e on e.id = j.id left join ${schema}.workers w on w.id = j.locked_by
  where j.id = $2::uuid`,
  { patient: true },
);
