// @Task makes a method the handler of a task; defineTask names a task together with its payload's type. Metadata only.
import 'reflect-metadata';
import { ROUTE_ARGS_METADATA } from '@nestjs/common/constants.js';
import type {
  AnyTaskOptions,
  BatchTaskOptions,
  DtoClass,
  PayloadSchema,
  StandardSchema,
  TaskOptions,
  TaskPayloads,
  TaskToken,
} from '../interfaces/task.interface.js';
import { TASK_METADATA } from '../jobs.constants.js';
import type { ClaimedJob } from '../interfaces/job.interface.js';
import type { BatchContext } from '../worker/batch.context.js';
import type { JobContext } from '../worker/job.context.js';
import { registerDecoration } from './decorated.method.js';

/** One @Task decoration, as it stands on the prototype of its class. */
export interface TaskMetadata {
  method: string | symbol;
  task: string;
  options: AnyTaskOptions;
  /** The payload parameter's class, which checks payloads unless the options name a schema. */
  parameterType: DtoClass | null;
  /** The first parameter's type, where a compiler that writes types has written one that can be no array. */
  notAnArray: string | null;
  /** Whether the compiler has written the parameters' types; a method without parameters needs none. */
  isTyped: boolean;
}

type Handler<P> = (payload: P, context: JobContext<P>, ...decorated: any[]) => unknown;

type BatchHandler<P> = (jobs: ClaimedJob<P>[], context: BatchContext<P>, ...decorated: any[]) => unknown;

/** Decorates methods that can take a payload of type `P`. */
type HandlerDecorator<H> = <M extends H>(
  target: object,
  method: string | symbol,
  descriptor: TypedPropertyDescriptor<M>,
) => void;

type HandlerOf<T extends string> = T extends keyof TaskPayloads
  ? Handler<TaskPayloads[T]>
  : (...args: any[]) => unknown;

type BatchHandlerOf<T extends string> = BatchHandler<T extends keyof TaskPayloads ? TaskPayloads[T] : any>;

/**
 * Makes a method of a provider or controller the handler of a task. Its first parameter is the payload, its second one
 * the `JobContext`; parameters with decorators of their own (`createParamDecorator`) are left out of that count.
 * A class-validator DTO given as the payload parameter's type checks payloads without `payload`.
 *
 * With `batch` the handler gets many jobs in one call, and a `BatchContext`; see docs/batches.md.
 *
 * Wrong options, unknown instances and a second handler for the same name fail when the application starts.
 *
 * @example
 * @Task('send-email', { maxAttempts: 5, timeoutMs: 10_000 })
 * async send(mail: SendEmailDto, ctx: JobContext<SendEmailDto>) { … }
 */
export function Task<O>(
  task: TaskToken<any, O>,
  options: BatchTaskOptions<NoInfer<O>>,
): HandlerDecorator<BatchHandler<O>>;
export function Task<P>(
  task: string,
  options: BatchTaskOptions<NoInfer<P>> & { payload: PayloadSchema<P> },
): HandlerDecorator<BatchHandler<P>>;
export function Task<T extends string>(task: T, options: BatchTaskOptions): HandlerDecorator<BatchHandlerOf<T>>;
export function Task<O>(task: TaskToken<any, O>, options?: TaskOptions): HandlerDecorator<Handler<O>>;
export function Task<P>(
  task: string,
  options: TaskOptions & { payload: PayloadSchema<P> },
): HandlerDecorator<Handler<P>>;
export function Task<T extends string>(task: T, options?: TaskOptions): HandlerDecorator<HandlerOf<T>>;
export function Task(task: string | TaskToken, options: AnyTaskOptions = {}): MethodDecorator {
  return (target, method, descriptor) => {
    registerDecoration('@Task', target, method, descriptor);
    const token = typeof task === 'object' && task !== null ? task : { task, payload: undefined };
    const schema = options?.payload ?? token.payload;
    const metadata: TaskMetadata = {
      method,
      task: token.task,
      options: schema === undefined ? options : { ...options, payload: schema },
      parameterType: options?.batch ? null : payloadClassOf(target, method),
      notAnArray: typeOfNoArray(payloadTypeOf(target, method)),
      isTyped: isTyped(target, method),
    };
    const others = (Reflect.getOwnMetadata(TASK_METADATA, target) ?? []) as TaskMetadata[];
    Reflect.defineMetadata(TASK_METADATA, [...others, metadata], target);
  };
}

/**
 * A task's name together with its payload's type and schema, for `@Task` and `addJob` alike. With a Standard Schema
 * `addJob` takes its input and the handler gets its output.
 *
 * @example
 * export const sendEmail = defineTask('send-email', SendEmailDto);
 * await jobs.addJob(sendEmail, { to: 'ada@example.org' });
 */
export function defineTask<I, O>(task: string, payload: StandardSchema<O, I>): TaskToken<I, O>;
export function defineTask<P>(task: string, payload: DtoClass<P>): TaskToken<P>;
export function defineTask<P = any>(task: string): TaskToken<P>;
export function defineTask(task: string, payload?: PayloadSchema): TaskToken {
  return { task, payload };
}

/** Which parameters of a method carry decorators of their own, such as those of `createParamDecorator`. */
export function decoratedParameters(type: object, method: string | symbol): Set<number> {
  const parameters = (Reflect.getMetadata(ROUTE_ARGS_METADATA, type, method) ?? {}) as Record<
    string,
    { index: number }
  >;
  return new Set(Object.values(parameters).map(({ index }) => index));
}

/** Parameter decorators have run before the method's, so that what they took is known here. */
function payloadClassOf(target: object, method: string | symbol): DtoClass | null {
  const type = payloadTypeOf(target, method);
  return typeof type === 'function' && !isBuiltIn(type) ? (type as DtoClass) : null;
}

function payloadTypeOf(target: object, method: string | symbol): unknown {
  const decorated = decoratedParameters(target.constructor, method);
  const types = (Reflect.getMetadata('design:paramtypes', target, method) ?? []) as unknown[];
  return types.find((_type, index) => !decorated.has(index));
}

/** TypeScript writes Array for arrays, and Object for what it cannot tell. */
const typeOfNoArray = (type: unknown): string | null =>
  typeof type === 'function' && type !== Array && type !== Object && !(type.prototype instanceof Array)
    ? type.name
    : null;

/** Without parameters there is nothing to write. */
function isTyped(target: object, method: string | symbol): boolean {
  const { value } = Object.getOwnPropertyDescriptor(target, method) ?? {};
  return Reflect.hasMetadata('design:paramtypes', target, method) || (value as Function | undefined)?.length === 0;
}

/** What TypeScript writes for interfaces, unions and primitives (Object, String …), and Date, Map, Buffer and the like. */
const isBuiltIn = (type: Function): boolean => (globalThis as Record<string, unknown>)[type.name] === type;
