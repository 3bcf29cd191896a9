// Which tasks this process knows: their options, payload schemas and, where it can run them, their handlers.
import type { PayloadSchema, TaskOptions } from '../interfaces/task.interface.js';
import { DuplicateTaskError } from '../jobs.errors.js';

/** Runs one attempt: gets the validated payload and the job's context. */
export type TaskHandler = (payload: any, context: any) => unknown;

export interface TaskDefinition {
  task: string;
  options: TaskOptions;
  schema: PayloadSchema | null;
  handler: TaskHandler;
  /** Where the handler was found, for messages: `MailTasks.send`. */
  source: string;
}

export class TaskRegistry {
  private readonly definitions = new Map<string, TaskDefinition>();
  private readonly known: string[] = [];

  /** @throws DuplicateTaskError when the name is taken. */
  add(definition: TaskDefinition): void {
    const other = this.definitions.get(definition.task);
    if (other) throw new DuplicateTaskError(definition.task, [other.source, definition.source]);
    this.definitions.set(definition.task, definition);
    this.known.push(definition.task);
  }

  /** Adds the task, or describes it anew: pools that share a manager may handle the same tasks. */
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
}
