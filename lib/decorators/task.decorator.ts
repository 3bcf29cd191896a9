import 'reflect-metadata';
import type { DtoClass, PayloadSchema, TaskOptions, TaskToken } from '../interfaces/task.interface.js';
import { TASK_METADATA } from '../jobs.constants.js';
import { checkTaskOptions } from '../jobs.options.js';

export interface TaskMetadata {
  task: string;
  options: TaskOptions;
  schema: PayloadSchema | null;
}

/**
 * Makes a method of a provider or controller the handler of a task. It gets the payload and a `JobContext`.
 * A class-validator DTO given as the payload parameter's type is found without `payload`.
 *
 * @throws InvalidOptionsError when the class is loaded, naming every wrong option
 * @example
 * @Task('send-email', { maxAttempts: 5, timeoutMs: 10_000 })
 * async send(mail: SendEmailDto, ctx: JobContext<SendEmailDto>) { … }
 */
export const Task =
  (name: string | TaskToken<any>, options: TaskOptions = {}): MethodDecorator =>
  (target, key, descriptor) => {
    const token = typeof name === 'string' ? { task: name, payload: undefined } : name;
    checkTaskOptions(token?.task, options);
    const schema = options.payload ?? token.payload ?? payloadClassOf(target, key);
    const method = descriptor.value as object;
    const others = (Reflect.getMetadata(TASK_METADATA, method) ?? []) as TaskMetadata[];
    Reflect.defineMetadata(TASK_METADATA, [...others, { task: token.task, options, schema }], method);
  };

/**
 * A task's name together with its payload's type and schema, for `@Task` and `addJob` alike.
 *
 * @example
 * export const sendEmail = defineTask('send-email', SendEmailDto);
 * await jobs.addJob(sendEmail, { to: 'ada@example.org' });
 */
export const defineTask = <P>(task: string, payload?: PayloadSchema<P>): TaskToken<P> => ({ task, payload });

/** What TypeScript says of types that are no DTO classes. */
const NO_DTO = new Set<unknown>([
  Object,
  String,
  Number,
  Boolean,
  Array,
  Promise,
  Function,
  Symbol,
  BigInt,
  Date,
  Map,
  Set,
]);

function payloadClassOf(target: object, key: string | symbol): PayloadSchema | null {
  const [first] = (Reflect.getMetadata('design:paramtypes', target, key) ?? []) as unknown[];
  return typeof first === 'function' && !NO_DTO.has(first) ? (first as DtoClass) : null;
}
