// Turns what a caller asks for into a row, or refuses it whole: options, payload schema, JSON, size.
import type { AddJobOptions, JobKeyMode } from '../interfaces/job.interface.js';
import type { ManagerSettings } from '../interfaces/jobs-options.interface.js';
import type { PayloadSchema, TaskToken } from '../interfaces/task.interface.js';
import { InvalidArgumentError, PayloadNotSerializableError, PayloadTooLargeError } from '../jobs.errors.js';
import type { NewJob } from '../storage/statements/add-jobs.js';
import { checkAddOptions } from './call.arguments.js';
import { newJobId } from './job.id.js';
import { EncryptedValue, payloadPlace, type JobCipher } from './job.cipher.js';
import type { PayloadValidator } from './payload.validator.js';
import type { TaskRegistry } from './task.registry.js';

/** A job that passed every check: its row, and its payload as JSON text. */
export interface PreparedJob {
  row: NewJob;
  json: string;
  /** What is stored instead where payloads are encrypted. */
  sealed: string | undefined;
}

export class JobPreparer {
  constructor(
    private readonly settings: ManagerSettings,
    private readonly tasks: TaskRegistry,
    private readonly validator: PayloadValidator,
    private readonly cipher: JobCipher | undefined,
  ) {}

  /**
   * @throws InvalidArgumentError, PayloadValidationError, PayloadNotSerializableError, PayloadTooLargeError
   */
  async prepare(token: string | TaskToken, payload: unknown, options: AddJobOptions): Promise<PreparedJob> {
    const { task, schema } = this.resolve(token);
    checkAddOptions(task, options);
    if (schema) await this.validator.validate(task, schema, payload);
    const row = this.toRow(task, options);
    const json = this.toJson(task, payload);
    const sealed = this.cipher && this.seal(this.cipher, row, json);
    row.payload_kib = kibOf(sealed ?? json);
    return { row, json, sealed };
  }

  private resolve(token: string | TaskToken): { task: string; schema: PayloadSchema | null } {
    if (typeof token === 'string') return { task: token, schema: this.tasks.get(token)?.schema ?? null };
    if (typeof token?.task !== 'string') {
      throw new InvalidArgumentError([
        `Expected a task's name or a token of defineTask, got ${token === null ? 'null' : typeof token}.`,
      ]);
    }
    return { task: token.task, schema: token.payload ?? this.tasks.get(token.task)?.schema ?? null };
  }

  private toRow(task: string, options: AddJobOptions): NewJob {
    const defaults = this.tasks.get(task)?.options ?? {};
    return {
      id: newJobId(),
      task,
      priority: options.priority ?? defaults.priority ?? 0,
      run_at: options.runAt?.toISOString() ?? null,
      delay_ms: options.delayMs ?? null,
      max_attempts: options.maxAttempts ?? defaults.maxAttempts ?? this.settings.retry.maxAttempts,
      timeout_ms: options.timeoutMs ?? null,
      queue: options.queue ?? defaults.queue ?? null,
      rate_limit_key: options.rateLimitKey ?? defaults.rateLimitKey ?? null,
      job_key: options.jobKey ?? null,
      job_key_mode: keyModeOf(options),
      flags: listOrNull(options.flags ?? defaults.flags),
      tags: listOrNull(options.tags),
      group_id: options.groupId ?? null,
      depends_on: options.dependsOn?.length ? [...new Set(options.dependsOn)] : null,
      on_parent_failure: options.onParentFailure ?? null,
      payload_kib: null,
    };
  }

  /** With preserve_run_at the payload may replace that of an older job, whose id only the database knows. */
  private seal(cipher: JobCipher, row: NewJob, json: string): string | undefined {
    if (!cipher.covers(row.task)) return undefined;
    const bound = row.job_key_mode === 'preserve_run_at' ? 'task' : undefined;
    return cipher.seal(payloadPlace(row.id, row.task, bound), json, bound);
  }

  private toJson(task: string, payload: unknown): string {
    const json = stringify(task, payload);
    const bytes = Buffer.byteLength(json);
    const { maxPayloadBytes } = this.settings;
    if (bytes > maxPayloadBytes) throw new PayloadTooLargeError(task, bytes, maxPayloadBytes);
    return json;
  }
}

/** Null: less than one. What is short enough need not be counted. */
function kibOf(text: string): number | null {
  if (text.length < 256) return null;
  return Math.min(32_767, Buffer.byteLength(text) >> 10) || null;
}

const keyModeOf = (options: AddJobOptions): JobKeyMode | null =>
  options.jobKey === undefined ? null : (options.jobKeyMode ?? 'replace');

const listOrNull = (list: string[] | undefined): string[] | null => (list?.length ? list : null);

/** JSON text of a payload; `undefined` is stored as null. */
function stringify(task: string, payload: unknown): string {
  if (payload instanceof EncryptedValue) {
    throw new PayloadNotSerializableError(task, `it could not be decrypted here (key "${payload.keyId}").`);
  }
  let json: string | undefined;
  try {
    json = JSON.stringify(payload === undefined ? null : payload);
  } catch (error) {
    throw new PayloadNotSerializableError(task, reasonOf(error), { cause: error });
  }
  if (json === undefined) throw new PayloadNotSerializableError(task, `it is a ${typeof payload}.`);
  // JSON writes NaN as null and a Map as {}: silently wrong. Only texts that contain these need the closer look.
  if (json.includes('null') || json.includes('{}')) refuseSilentLoss(task, payload, 'payload', new Set());
  return json;
}

const reasonOf = (error: unknown): string => {
  const message = error instanceof Error ? error.message.split('\n')[0] : String(error);
  return error instanceof RangeError ? 'it is nested too deeply.' : `${message}.`;
};

function refuseSilentLoss(task: string, value: unknown, path: string, seen: Set<unknown>): void {
  if (typeof value === 'number' && !Number.isFinite(value)) {
    throw new PayloadNotSerializableError(
      task,
      `${path} is ${value}, which JSON cannot express. Use null or a string.`,
    );
  }
  if (value instanceof Map || value instanceof Set) {
    const kind = value instanceof Map ? 'a Map' : 'a Set';
    throw new PayloadNotSerializableError(task, `${path} is ${kind}. Use a plain object or an array.`);
  }
  if (typeof value !== 'object' || value === null || seen.has(value) || 'toJSON' in value) return;
  seen.add(value);
  for (const [key, inner] of Object.entries(value)) refuseSilentLoss(task, inner, `${path}.${key}`, seen);
}
