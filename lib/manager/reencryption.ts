// Rotation of keys: one pass over everything that is encrypted with another key than the present one, in small batches
// beside running workers. What is done stays done, so a pass that was cut short is simply made again.
import { DecryptionError } from '../jobs.errors.js';
import type { Database } from '../storage/database.js';
import { SEALED_COLUMNS, type SealedColumn, type SealedRow } from '../storage/statements/reencrypt.js';
import { ENVELOPE_START, type JobCipher, payloadBinding, type Binding, SEALED_LINE } from './job.cipher.js';

export interface ReencryptOptions {
  /** Values that are read and written at once. Default 500. */
  batchSize?: number | undefined;
  /** Ends the pass after the batch under way, without an error. */
  signal?: AbortSignal | undefined;
}

export interface Reencryption {
  /** Values that are encrypted with the present key now. */
  reencrypted: number;
  /** Values that still are not: held by open transactions, or encrypted with keys that this process lacks. */
  left: number;
  /** Ids of keys that are missing here, or are not the keys of that id. */
  unreadable: string[];
}

export async function reencrypt(
  database: Database,
  cipher: JobCipher,
  { batchSize = 500, signal }: ReencryptOptions,
): Promise<Reencryption> {
  const unreadable = new Set<string>();
  let reencrypted = 0;
  let left = 0;
  for (const column of SEALED_COLUMNS) {
    const [start, present] = startsOf(column, cipher);
    let after: { owner: string | null; behind: boolean } = { owner: null, behind: false };
    while (!signal?.aborted) {
      const rows = await database.run(column.find, [start, present, after.owner, after.behind, batchSize]);
      if (!rows.length) break;
      const replaced = await replace(database, cipher, column, rows, unreadable);
      reencrypted += replaced;
      // An owner may have more rows than a batch. If none was replaced, the same owner again would never end.
      after = { owner: rows.at(-1)!.owner, behind: replaced === 0 };
    }
    left += (await database.run(column.count, [start, present]))[0]!.left;
  }
  return { reencrypted, left, unreadable: [...unreadable] };
}

async function replace(
  database: Database,
  cipher: JobCipher,
  column: SealedColumn,
  rows: SealedRow[],
  unreadable: Set<string>,
): Promise<number> {
  const fresh = rows.flatMap((row) => {
    try {
      return [{ ...row, fresh: renewed(cipher, column.field, row) }];
    } catch (error) {
      if (!(error instanceof DecryptionError)) throw error;
      unreadable.add(error.keyId);
      return [];
    }
  });
  if (!fresh.length) return 0;
  const [answer] = await database.run(column.replace, [
    fresh.map(({ owner }) => owner),
    fresh.map(({ part }) => part),
    fresh.map(({ sealed }) => sealed),
    fresh.map((row) => row.fresh),
  ]);
  return answer!.replaced;
}

function startsOf({ field }: SealedColumn, cipher: JobCipher): [any: string, present: string] {
  const start = field === 'log' ? SEALED_LINE + ENVELOPE_START : ENVELOPE_START;
  return [start, `${start}${JSON.stringify(cipher.keyId)},`];
}

/** @throws DecryptionError */
function renewed(cipher: JobCipher, field: SealedColumn['field'], { owner, part, task, sealed }: SealedRow): string {
  const prefix = field === 'log' ? SEALED_LINE : '';
  const envelope = JSON.parse(sealed.slice(prefix.length)) as Parameters<JobCipher['open']>[1];
  const place = field === 'payload' ? payloadBinding(owner, task!, envelope.bound) : bindingOf(field, owner, part);
  const text = cipher.open(place, envelope);
  // Now the id is known: the payload is bound to it, whatever it was bound to before.
  return prefix + cipher.seal(field === 'payload' ? payloadBinding(owner, task!) : place, text);
}

/** What an attempt reported is the same value, whether the next one reads it from the job or the history shows it. */
function bindingOf(field: SealedColumn['field'], owner: string, part: string | null): Binding {
  if (field === 'step') return [`step ${part}`, owner];
  return [field === 'previous' ? 'partial' : field, owner];
}
