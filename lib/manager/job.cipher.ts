// Encryption at rest (AES-256-GCM): what users put into jobs becomes an envelope on its way to the database, and comes
// out of it again. Each value is bound to its place, so that none can be passed off as another.
import { createCipheriv, createDecipheriv, createHmac, randomBytes } from 'node:crypto';
import type { EncryptionSettings } from '../interfaces/jobs-options.interface.js';
import { DecryptionError } from '../jobs.errors.js';

/**
 * Where an encrypted value belongs: the name of a field, then what tells whose it is. Authenticated with the value.
 * A payload is bound to its job's id and task, everything else to its job's id.
 */
export type Binding = readonly [field: string, ...owner: (string | null)[]];

/**
 * What is stored in the place of a JSON value. The mark is a negative zero, which JSON has and JSON.stringify never
 * writes: no value that a user stores can be taken for an envelope.
 */
interface Envelope {
  $encrypted: number;
  key: string;
  data: string;
  /** The payload of a job that an older one may take over: it may end up under that one's id. */
  bound?: 'task';
}

const ALGORITHM = 'aes-256-gcm';
const IV_BYTES = 12;
const TAG_BYTES = 16;
/** How every stored envelope begins; re-encryption looks for it. */
export const ENVELOPE_START = '{"$encrypted":-0,"key":';
/** Log lines are text. No line of a user begins so: see `plainLine`. */
export const SEALED_LINE = '\u0001encrypted:';

/** In place of a value that cannot be decrypted here, where jobs are only looked at. */
export class EncryptedValue {
  constructor(
    /** The id of the key that it was encrypted with. */
    readonly keyId: string,
  ) {}
}

export class JobCipher {
  private readonly keys: Map<string, EncryptionSettings['keys'][number]['key']>;
  private readonly tasks: Set<string> | null;
  /** The id of the key that encrypts. */
  readonly keyId: string;

  constructor({ keys, tasks }: EncryptionSettings) {
    this.keys = new Map(keys.map(({ id, key }) => [id, key]));
    this.tasks = tasks && new Set(tasks);
    this.keyId = keys[0]!.id;
  }

  /** Whether what jobs of the task carry is encrypted from now on. What was stored otherwise can be read all the same. */
  covers(task: string): boolean {
    return this.tasks === null || this.tasks.has(task);
  }

  /** The envelope of a text, as JSON. */
  seal(place: Binding, text: string, bound?: 'task'): string {
    const iv = randomBytes(IV_BYTES);
    const cipher = createCipheriv(ALGORITHM, this.keys.get(this.keyId)!, iv, { authTagLength: TAG_BYTES });
    cipher.setAAD(additionalData(this.keyId, place));
    const body = [cipher.update(text, 'utf8'), cipher.final()];
    const data = Buffer.concat([iv, ...body, cipher.getAuthTag()]).toString('base64');
    return `${ENVELOPE_START}${JSON.stringify(this.keyId)},"data":"${data}"${bound ? `,"bound":"${bound}"` : ''}}`;
  }

  /** Tells whether a text is the same as another one, and nothing else of it to those without the key. */
  digest(text: string): string {
    return createHmac('sha256', this.keys.get(this.keyId)!).update(text).digest('base64url');
  }

  /** @throws DecryptionError */
  open(place: Binding, { key: keyId, data }: Envelope): string {
    const key = this.keys.get(keyId);
    if (!key) throw unknownKey(keyId, [...this.keys.keys()]);
    try {
      const bytes = Buffer.from(data, 'base64');
      const decipher = createDecipheriv(ALGORITHM, key, bytes.subarray(0, IV_BYTES), { authTagLength: TAG_BYTES });
      decipher.setAAD(additionalData(keyId, place));
      decipher.setAuthTag(bytes.subarray(-TAG_BYTES));
      const text = decipher.update(bytes.subarray(IV_BYTES, -TAG_BYTES), undefined, 'utf8');
      return text + decipher.final('utf8');
    } catch (cause) {
      throw new DecryptionError(
        keyId,
        `Expected a value that was encrypted with key "${keyId}" for this place, got one that was not: the key is not ` +
          'the same any more, or the row was changed in the database.',
        { cause },
      );
    }
  }
}

const additionalData = (keyId: string, place: Binding): Buffer =>
  Buffer.from(JSON.stringify(['millrace', keyId, ...place]));

/** Where a job's payload belongs; `bound` as its envelope says. */
export const payloadBinding = (jobId: string, task: string, bound?: string): Binding => [
  'payload',
  bound === 'task' ? null : jobId,
  task,
];

/** One look at a property for all values that are not encrypted. */
export const isSealed = (value: unknown): value is Envelope =>
  (value as Partial<Envelope> | null | undefined)?.$encrypted !== undefined &&
  Object.is((value as Envelope).$encrypted, -0);

/** A value as it was before it was encrypted; any other one as it is. @throws DecryptionError */
export function openValue<T>(cipher: JobCipher | undefined, value: T, field: string, jobId: string): T {
  return isSealed(value) ? (openJson(cipher, [field, jobId], value) as T) : value;
}

/** The same for a job's payload. @throws DecryptionError */
export function openPayload<T>(cipher: JobCipher | undefined, payload: T, jobId: string, task: string): T {
  if (!isSealed(payload)) return payload;
  return openJson(cipher, payloadBinding(jobId, task, payload.bound), payload) as T;
}

/** For looking at jobs: what cannot be decrypted here is an `EncryptedValue`. */
export function reveal(open: () => unknown): unknown {
  try {
    return open();
  } catch (error) {
    if (error instanceof DecryptionError) return new EncryptedValue(error.keyId);
    throw error;
  }
}

/** The text in an envelope. @throws DecryptionError */
export function openText(cipher: JobCipher | undefined, place: Binding, envelope: unknown): string {
  if (!cipher) throw unknownKey((envelope as Envelope).key, []);
  return cipher.open(place, envelope as Envelope);
}

const openJson = (cipher: JobCipher | undefined, place: Binding, envelope: Envelope): unknown =>
  JSON.parse(openText(cipher, place, envelope)) as unknown;

/** JSON text as it is stored: encrypted where the task is covered. */
export const sealText = (
  cipher: JobCipher | undefined,
  task: string,
  field: string,
  jobId: string,
  text: string,
): string => (cipher?.covers(task) ? cipher.seal([field, jobId], text) : text);

/** A log line that looks like an encrypted one is none. */
export const plainLine = (line: string): string => (line.startsWith(SEALED_LINE) ? `\uFFFD${line.slice(1)}` : line);

const unknownKey = (keyId: string, known: string[]): DecryptionError =>
  new DecryptionError(
    keyId,
    `Expected key "${keyId}" among encryption.keys of this process, got ${known.map((id) => `"${id}"`).join(', ') || 'none'}. ` +
      'Add it there: keys must stay until nothing is encrypted with them any more.',
  );
