// Which tasks this process knows: their options, payload schemas and, where it can run them, their handlers.
import type { AnyTaskOptions, PayloadSchema } from '../interfaces/task.interface.js';
import { DuplicateTaskError } from '../jobs.errors.js';
import { closestWithin } from '../validation.js';

/** Runs one attempt: gets the validated payload and the job's context. */
export type TaskHandler = (payload: any, context: any) => unknown;

export interface TaskDefinition {
  task: string;
  options: AnyTaskOptions;
  schema: PayloadSchema | null;
  handler: TaskHandler;
  /** Where the handler was found, for messages: `MailTasks.send`. */
  source: string;
}

/** A name is short of one letter, has one too many, another one, or two that changed places. */
const MAX_TYPOS = 2;
const LETTERS_PER_TYPO = 4;
/** Names that come from data must not fill the memory. */
const MAX_NOTICED = 1_000;

export class TaskRegistry {
  private readonly definitions = new Map<string, TaskDefinition>();
  private readonly known: string[] = [];
  private readonly noticed = new Set<string>();

  constructor(private readonly warn: (message: string) => void = emitWarning) {}

  /** @throws DuplicateTaskError when the name is taken. */
  add(definition: TaskDefinition): void {
    const other = this.definitions.get(definition.task);
    if (other) throw new DuplicateTaskError(definition.task, [other.source, definition.source]);
    this.definitions.set(definition.task, definition);
    this.known.push(definition.task);
  }

  /** Adds the task, or replaces what is known of it: pools that share a manager may handle the same tasks. */
  replace(definition: TaskDefinition): void {
    if (!this.definitions.has(definition.task)) this.known.push(definition.task);
    this.definitions.set(definition.task, definition);
  }

  get(task: string): TaskDefinition | undefined {
    return this.definitions.get(task);
  }

  /** Live: tasks that are found later show up in it, so a pool may be made before all providers are. */
  names(): string[] {
    return this.known;
  }

  /**
   * A job is added for the task. A name that is not known here but resembles one is probably misspelt: that is warned of,
   * once. It is no error, since other processes may handle the task.
   */
  notice(task: string): void {
    if (this.definitions.has(task) || !this.known.length || this.noticed.has(task)) return;
    if (this.noticed.size === MAX_NOTICED) return;
    this.noticed.add(task);
    const meant = misspelt(task, this.known);
    if (meant === null) return;
    this.warn(
      `A job was added for the task "${task}", which has no handler in this process; did you mean "${meant}"? If ` +
        'another process handles it, this warning can be ignored.',
    );
  }
}

/** The known name of which `task` is a misspelling. Names that differ in numbers only (`part-1`, `part-2`) are none. */
function misspelt(task: string, known: string[]): string | null {
  const limit = Math.min(MAX_TYPOS, Math.floor(task.length / LETTERS_PER_TYPO));
  const meant = limit === 0 ? null : closestWithin(limit, task, known);
  return meant !== null && withoutNumbers(meant) === withoutNumbers(task) && meant.toLowerCase() !== task.toLowerCase()
    ? null
    : meant;
}

const withoutNumbers = (name: string): string => name.toLowerCase().replace(/\d+/g, '');

const emitWarning = (message: string): void =>
  process.emitWarning(message, { type: 'MillraceWarning', code: 'MILLRACE_UNKNOWN_TASK' });
