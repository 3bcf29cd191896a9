// Turns what a caller asks for into a row, or refuses it whole: JSON, size, payload schema. All of it is read in the turn of
// the call; a schema, which may take its time, sees the text that will be stored, so a payload that it accepts here is one
// that it accepts before the handler.
import type { AddJobOptions } from '../interfaces/job.interface.js';
import type { ManagerSettings } from '../interfaces/jobs-options.interface.js';
import type { PayloadSchema, TaskToken } from '../interfaces/task.interface.js';
import { InvalidArgumentError, PayloadNotSerializableError, PayloadTooLargeError } from '../jobs.errors.js';
import type { NewJob } from '../storage/statements/add-jobs.js';
import { faultOf, refuseCall } from '../validation.js';
import { rules } from '../validation.rules.js';
import { idsOf } from './arguments.js';
import { newJobId } from './job.id.js';
import { EncryptedValue, payloadBinding, type JobCipher } from './job.cipher.js';
import { comparingPartitions, meetingOf, type Compared } from './job.meetings.js';
import { lossIn } from './json.loss.js';
import type { PayloadValidator } from './payload.validator.js';
import { askedLimits, limitsByPayload, type AskedLimits } from './rate.limits.js';
import type { TaskRegistry } from './task.registry.js';

/** A job that passed every check: its row, and its payload as JSON text. */
export interface PreparedJob {
  row: NewJob;
  json: string;
  /** What is stored instead where payloads are encrypted. */
  sealed: string | undefined;
}

/** What a call asked for, as it was then: what becomes of the caller's objects afterwards changes nothing of it. */
export interface TakenJob {
  row: NewJob;
  json: string;
  schema: PayloadSchema | null;
  /** Names its partition, once its payload is known to be valid. */
  partitionOf: ((payload: any) => string | null | undefined) | null;
  /** What waits for that name. */
  unique: AddJobOptions | null;
  /** Rate limits by values that the payload names. */
  limitsBy: AskedLimits['limitsBy'];
}

export class JobPreparer {
  constructor(
    private readonly settings: ManagerSettings,
    private readonly tasks: TaskRegistry,
    private readonly validator: PayloadValidator,
    private readonly cipher: JobCipher | undefined,
  ) {}

  /**
   * For the very turn of the call, before anything is awaited.
   * @throws PayloadNotSerializableError, PayloadTooLargeError, InvalidArgumentError where the payload lacks what `unique` compares
   */
  take(token: string | TaskToken, payload: unknown, options: AddJobOptions): TakenJob {
    const { task, schema } = this.resolve(token);
    this.tasks.notice(task);
    const json = this.toJson(task, payload);
    const defaults = this.tasks.get(task)?.options ?? {};
    const queue = (options.queue === undefined ? defaults.queue : options.queue) ?? null;
    if (queue === null && options.partition) throw new InvalidArgumentError([NO_QUEUE]);
    const asked = options.partition === undefined ? defaults.partition : options.partition;
    const partition = queue === null ? null : (asked ?? null);
    const partitionOf = typeof partition === 'function' ? partition : null;
    const lane = { queue, partition: typeof partition === 'string' ? partition : null };
    const unique = partitionOf && comparingPartitions(options, defaults);
    const row = this.toRow(task, unique ? { ...options, unique: null } : options, json, lane);
    const { limits, limitsBy } = askedLimits(options, defaults);
    row.limits = limits;
    return { row, json, schema, partitionOf, unique, limitsBy };
  }

  /** @throws PayloadValidationError, MissingPackageError, InvalidArgumentError */
  async check({ row, json, schema, partitionOf, unique, limitsBy }: TakenJob): Promise<PreparedJob> {
    // Each is given a copy of its own of what is stored.
    const stored = (): unknown => JSON.parse(json);
    if (schema) await this.validator.validate(row.task, schema, stored());
    if (partitionOf) row.partition = partitionBy(partitionOf, row.task, stored());
    if (limitsBy) row.limits = limitsByPayload(limitsBy, row.task, stored);
    if (unique) Object.assign(row, meetingOf(unique, {}, this.compared(row, json)));
    const sealed = this.cipher && this.seal(this.cipher, row, json);
    row.payload_kib = kibOf(sealed ?? json);
    return { row, json, sealed };
  }

  private resolve(token: string | TaskToken): { task: string; schema: PayloadSchema | null } {
    const task = typeof token === 'string' ? token : token.task;
    const given = typeof token === 'string' ? undefined : token.payload;
    return { task, schema: given ?? this.tasks.get(task)?.schema ?? null };
  }

  private compared({ task, queue, partition }: Pick<NewJob, 'task' | 'queue' | 'partition'>, json: string): Compared {
    const { cipher } = this;
    const digest = cipher?.covers(task) ? (text: string) => cipher.digest(text) : undefined;
    return { task, queue, partition, json, digest };
  }

  private toRow(task: string, options: AddJobOptions, json: string, lane: Pick<NewJob, 'queue' | 'partition'>): NewJob {
    const defaults = this.tasks.get(task)?.options ?? {};
    return {
      id: newJobId(),
      task,
      priority: options.priority ?? defaults.priority ?? 0,
      run_at: options.runAt?.toISOString() ?? null,
      ...meetingOf(options, defaults, this.compared({ task, ...lane }, json)),
      max_attempts: options.maxAttempts ?? defaults.maxAttempts ?? this.settings.retry.maxAttempts,
      timeout_ms: options.timeoutMs ?? null,
      ...lane,
      limits: null,
      flags: listOrNull(options.flags ?? defaults.flags),
      tags: listOrNull(options.tags),
      group_id: options.groupId ?? null,
      depends_on: options.dependsOn?.length ? idsOf(options.dependsOn) : null,
      on_parent_failure: options.onParentFailure ?? null,
      payload_kib: null,
    };
  }

  /** Where a waiting job takes over what is added, the payload may replace that of an older job, whose id only the database knows. */
  private seal(cipher: JobCipher, row: NewJob, json: string): string | undefined {
    if (!cipher.covers(row.task)) return undefined;
    const bound = TAKING_OVER.includes(row.job_key_mode) ? 'task' : undefined;
    return cipher.seal(payloadBinding(row.id, row.task, bound), json, bound);
  }

  private toJson(task: string, payload: unknown): string {
    const json = stringify(task, payload);
    const bytes = Buffer.byteLength(json);
    const { maxPayloadBytes } = this.settings;
    if (bytes > maxPayloadBytes) throw new PayloadTooLargeError(task, bytes, maxPayloadBytes);
    return json;
  }
}

const NO_QUEUE = 'Expected a queue beside partition, got none.';

/** @throws InvalidArgumentError */
function partitionBy(partitionOf: NonNullable<TakenJob['partitionOf']>, task: string, payload: unknown): string | null {
  const name = partitionOf(payload) ?? null;
  refuseCall(faultOf(`the partition that task "${task}" names`, name, rules.optional(rules.partition)));
  return name;
}

/** Null: less than one. What is short enough need not be counted. */
function kibOf(text: string): number | null {
  if (text.length < 256) return null;
  return Math.min(32_767, Buffer.byteLength(text) >> 10) || null;
}

/** A waiting job takes over what is added, and keeps its id. */
const TAKING_OVER: (string | null)[] = ['preserve_run_at', 'debounce', 'throttle'];

const listOrNull = (list: string[] | undefined): string[] | null => (list?.length ? [...list] : null);

/** JSON text of a payload; `undefined` is stored as null. */
function stringify(task: string, payload: unknown): string {
  if (payload instanceof EncryptedValue) {
    throw new PayloadNotSerializableError(task, `it could not be decrypted here (key "${payload.keyId}").`);
  }
  const value = payload === undefined ? null : payload;
  let json: string | undefined;
  let loss: string | null;
  try {
    json = JSON.stringify(value);
    loss = lossIn(value, 'payload');
  } catch (error) {
    throw new PayloadNotSerializableError(task, reasonOf(error), { cause: error });
  }
  if (loss !== null || json === undefined) throw new PayloadNotSerializableError(task, loss ?? NOTHING);
  return json;
}

const NOTHING = 'its toJSON returns undefined.';

const reasonOf = (error: unknown): string => {
  const message = error instanceof Error ? error.message.split('\n')[0] : String(error);
  return error instanceof RangeError ? 'it is nested too deeply.' : `${message}.`;
};
