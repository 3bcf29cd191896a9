// Names for jobs and claims.
import { randomFillSync } from 'node:crypto';

const POOL_IDS = 256;
const pool = Buffer.alloc(POOL_IDS * 8);
let used = POOL_IDS;
let lastMs = 0;
let counter = 0;

let timeOfIds = '';

const hex = (value: number, digits: number): string => value.toString(16).padStart(digits, '0');

/** All counters as three digits: made once, they cost nothing for each id. */
const COUNTERS = Array.from({ length: 0x1000 }, (_, counter) => hex(counter, 3));

/**
 * A UUID of version 7 (RFC 9562): milliseconds, a counter that keeps ids of one process in order, 62 random bits.
 * Known before the insert, so a repeated insert can be recognised; ordered, so neighbours share index pages.
 */
export function newJobId(): string {
  const now = Date.now();
  if (now > lastMs) startMillisecond(now);
  else if (++counter === COUNTERS.length) startMillisecond(lastMs + 1); // all are used: borrow the next one
  if (used === POOL_IDS) {
    randomFillSync(pool);
    used = 0;
  }
  const offset = 8 * used++;
  pool[offset] = (pool[offset]! & 0x3f) | 0x80;
  const random = pool.toString('hex', offset, offset + 8);
  return `${timeOfIds}-7${COUNTERS[counter]}-${random.slice(0, 4)}-${random.slice(4)}`;
}

function startMillisecond(ms: number): void {
  lastMs = ms;
  counter = 0;
  const digits = hex(ms, 12);
  timeOfIds = `${digits.slice(0, 8)}-${digits.slice(8)}`;
}

/**
 * The name of one claim of a job, made from the job's id and the claim's fence, so that it need not be stored: a
 * UUID of version 8 that differs from the id in the version and in the last 48 bits, which are XORed with the fence.
 */
export function correlationIdOf(jobId: string, fence: string): string {
  const count = Number(fence);
  if (count < 0x1000000) {
    const end = (parseInt(jobId.slice(30), 16) ^ count).toString(16);
    return `${jobId.slice(0, 14)}8${jobId.slice(15, 30)}${end.length === 6 ? end : end.padStart(6, '0')}`;
  }
  const high = parseInt(jobId.slice(24, 30), 16) ^ (Math.floor(count / 0x1000000) & 0xffffff);
  const low = parseInt(jobId.slice(30), 16) ^ (count & 0xffffff);
  return `${jobId.slice(0, 14)}8${jobId.slice(15, 24)}${hex(high, 6)}${hex(low, 6)}`;
}
