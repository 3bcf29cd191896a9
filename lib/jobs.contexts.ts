// Runs a method as Nest runs a route: guards, interceptors, pipes, parameter decorators, exception filters.
import { ROUTE_ARGS_METADATA } from '@nestjs/common/constants.js';
import { type ExceptionFilter, Logger, type PipeTransform, type Type } from '@nestjs/common';
import { ApplicationConfig, ExternalContextCreator } from '@nestjs/core';
import type { ExternalExceptionFilterContext } from '@nestjs/core/exceptions/external-exception-filter-context.js';
import type { ExternalExceptionsHandler } from '@nestjs/core/exceptions/external-exceptions-handler.js';
import { ExecutionContextHost } from '@nestjs/core/helpers/execution-context-host.js';
import type { ContextId, InstanceWrapper } from '@nestjs/core/injector/instance-wrapper.js';
import { isObservable, lastValueFrom, Observable, takeUntil } from 'rxjs';
import { decoratedParameters } from './decorators/task.decorator.js';
import { JOBS_CONTEXT, TASK_ARGS_METADATA } from './jobs.constants.js';
import { JobsError } from './jobs.errors.js';
import { keepStoredForm, storedFormOf } from './manager/payload.validator.js';
import type { TaskHandler } from './manager/task.registry.js';
import { show } from './validation.js';

type Method = (...args: unknown[]) => unknown;
/** An instance that has handlers. */
export type Host = Record<string | symbol, Method> & { constructor: Type };

/** How Nest numbers a parameter that is the request's body: what pipes such as ValidationPipe look at. */
const PAYLOAD = 3;
/** A number that no parameter decorator of Nest's has. */
const CONTEXT = 1_000;

/** The part of a ValidationPipe that tells one; by its members, since there may be several copies of Nest. */
interface TransformingPipe extends PipeTransform {
  isTransformEnabled: boolean;
}

/** Members of Nest's creator that are private, and the same in Nest 11 and 12. */
interface CreatorInternals {
  container: { applicationConfig: ApplicationConfig };
  filtersContextCreator: ExternalExceptionFilterContext;
  getContextModuleKey: () => string;
  interceptorsConsumer: { intercept(interceptors: unknown, args: unknown[], ...rest: unknown[]): Promise<unknown> };
}

export class HandlerContexts {
  private readonly creator: ExternalContextCreator;
  private readonly config: ApplicationConfig;
  private moduleKey = '';

  /**
   * Global enhancers (`APP_GUARD`, `app.useGlobalPipes()` …) run on jobs only if asked for: a JWT guard would refuse
   * every job.
   */
  constructor(
    nest: ExternalContextCreator,
    readonly globalEnhancers: boolean,
  ) {
    const { container } = nest as unknown as CreatorInternals;
    this.config = globalEnhancers ? container.applicationConfig : new ApplicationConfig();
    this.creator = ExternalContextCreator.fromContainer(
      Object.create(container, { applicationConfig: { value: this.config } }) as never,
    );
    this.adapt();
  }

  /** Global enhancers that are made for each job, or each handler. */
  scopedGlobals(): InstanceWrapper[] {
    return [
      ...this.config.getGlobalRequestGuards(),
      ...this.config.getGlobalRequestInterceptors(),
      ...this.config.getGlobalRequestPipes(),
      ...this.config.getGlobalRequestFilters(),
    ];
  }

  /** The method with all that Nest puts around it. `contextId` where the host was made for one job. */
  wrap(wrapper: InstanceWrapper, host: Host, method: string | symbol, contextId?: ContextId): TaskHandler {
    const callback = lateCallback(host, method);
    describeParameters(host.constructor, method);
    this.moduleKey = wrapper.host!.token;
    const run = this.creator.create(
      host as never,
      callback,
      method as string,
      TASK_ARGS_METADATA,
      { exchangeKeyForValue: argumentOf },
      contextId,
      wrapper.id,
      { guards: true, interceptors: true, filters: false },
      JOBS_CONTEXT as never,
    ) as TaskHandler;
    const { filtersContextCreator } = this.creator as unknown as CreatorInternals;
    return filtered(run, filtersContextCreator.create(host, callback as never, this.moduleKey, contextId, wrapper.id));
  }

  /**
   * Five things Nest does otherwise: pipes are for payloads and pass the context argument by; a DTO is made once, by the
   * ValidationPipe where there is one; the module in which classes of enhancers are looked for is the host's, which Nest
   * does not find for controllers: their guards would be skipped; a global filter may fail, because it is made for
   * requests; and an Observable ends with its attempt.
   */
  private adapt(): void {
    const { creator } = this;
    const applyPipes = creator.getParamValue.bind(creator);
    creator.getParamValue = async (value: any, metadata: any, pipes) => {
      if (metadata.type === CONTEXT) return value as unknown;
      const stored = pipes.some(makesInstances) ? storedFormOf(value) : undefined;
      if (!stored || !isOfClass(value, metadata.metatype)) return applyPipes(value, metadata, pipes) as unknown;
      return applyPipes(structuredClone(stored), metadata, pipes.map(makingInstances)) as unknown;
    };
    const internals = creator as unknown as CreatorInternals;
    internals.getContextModuleKey = () => this.moduleKey;
    const filters = internals.filtersContextCreator;
    const findGlobal = filters.getGlobalMetadata.bind(filters) as (...context: unknown[]) => ExceptionFilter[];
    filters.getGlobalMetadata = ((...context: unknown[]) => findGlobal(...context).map(safeFilter)) as never;
    const { interceptorsConsumer: consumer } = internals;
    const intercept = consumer.intercept.bind(consumer);
    consumer.intercept = async (interceptors, args, ...rest) =>
      resolved(await intercept(interceptors, args, ...rest), args[1] as Attempted);
  }
}

/**
 * ValidationPipe makes a DTO's instance itself. Given one that is made already it would apply `@Transform` a second time,
 * so it gets the payload as it is stored, the way it gets a request's body.
 */
const makesInstances = (pipe: PipeTransform): pipe is TransformingPipe =>
  'isTransformEnabled' in pipe && 'validatorOptions' in pipe;

/** Handlers get a DTO's instance, whether or not the pipe is told to transform. */
const makingInstances = (pipe: PipeTransform): PipeTransform =>
  makesInstances(pipe) && !pipe.isTransformEnabled
    ? (Object.create(pipe, { isTransformEnabled: { value: true } }) as PipeTransform)
    : pipe;

const isOfClass = (value: unknown, type: unknown): boolean => typeof type === 'function' && value instanceof type;

/** What the class says, whatever has been put over it on the instance. */
export const original = (host: Host, method: string | symbol): Method =>
  (Object.getPrototypeOf(host) as Host)[method] ?? host[method]!;

/** What ends an Observable: the signal of the attempt that subscribes to it. */
interface Attempted {
  readonly signal: AbortSignal;
}

/** What Nest makes of an answer: an Observable's last value, or none. It is unsubscribed from when the attempt is aborted. */
export const resolved = (answer: unknown, context: Attempted): unknown =>
  isObservable(answer) ? lastValueUntil(context.signal, answer) : answer;

function lastValueUntil(signal: AbortSignal, answer: Observable<unknown>): Promise<unknown> {
  const aborted = new Observable<never>((subscriber) => {
    const fail = (): void => subscriber.error(signal.reason);
    if (signal.aborted) return fail();
    signal.addEventListener('abort', fail);
    return () => signal.removeEventListener('abort', fail);
  });
  // One that ends without a value has done its work.
  return lastValueFrom(answer.pipe(takeUntil(aborted)), { defaultValue: undefined });
}

/** Calls by name, late, so that spies take effect; has the method's metadata by inheriting from it. */
function lateCallback(host: Host, method: string | symbol): Method {
  const call = (...args: unknown[]): unknown => host[method]!(...args);
  return Object.setPrototypeOf(call, original(host, method)) as Method;
}

/**
 * Tells Nest what the handler's parameters are: decorated ones get what their decorator says, the others the payload and
 * the context, in this order.
 */
function describeParameters(type: Type, method: string | symbol): void {
  const decorated = (Reflect.getMetadata(ROUTE_ARGS_METADATA, type, method) ?? {}) as object;
  const taken = decoratedParameters(type, method);
  const free = Array.from({ length: taken.size + 2 }, (_, index) => index).filter((index) => !taken.has(index));
  const [payload, context] = free.map((index) => ({ index, data: undefined, pipes: [] }));
  const ours = { [`${PAYLOAD}:${payload!.index}`]: payload, [`${CONTEXT}:${context!.index}`]: context };
  Reflect.defineMetadata(TASK_ARGS_METADATA, { ...ours, ...decorated }, type, method);
}

/** A `@Body()` of a method that is a route as well is the payload, or a property of it; there is no other request. */
function argumentOf(kind: number, property: unknown, [payload, context]: unknown[]): unknown {
  if (kind === CONTEXT) return context;
  if (kind !== PAYLOAD) return undefined;
  if (typeof property !== 'string') return payload;
  const part = (payload as Record<string, unknown> | null)?.[property];
  keepStoredForm(part, (storedFormOf(payload) as Record<string, unknown> | undefined)?.[property]);
  return part;
}

/**
 * A global filter answers a response that a job has not, and fails. Then the handler's error stands, with its reason and
 * its kind, unless the filter has plainly made another one of it: an error of the library's, or one with it as its cause.
 */
function safeFilter(filter: ExceptionFilter): ExceptionFilter {
  const safe = Object.create(filter) as ExceptionFilter;
  safe.catch = async (error: unknown, host) => {
    try {
      return await resolved(filter.catch(error, host), host.getArgByIndex(1));
    } catch (failure) {
      const meant = failure === error || failure instanceof JobsError || (failure as Error | null)?.cause === error;
      if (meant) throw failure;
      logger.error(`The global filter ${filter.constructor.name} failed on a job: ${messageOf(failure)}`);
      throw error;
    }
  };
  return safe;
}

const logger = new Logger('JobsModule');
const messageOf = (failure: unknown): string => (failure instanceof Error ? failure.message : show(failure));

/**
 * What a filter throws is how the job fails; what it returns is the handler's answer. If it returns nothing, the error
 * stands: a filter that only reports must not turn a failure into a success.
 */
function filtered(run: TaskHandler, filters: ExternalExceptionsHandler): TaskHandler {
  return async (payload, context) => {
    try {
      return (await run(payload, context)) as unknown;
    } catch (error) {
      const host = new ExecutionContextHost([payload, context]);
      host.setType(JOBS_CONTEXT);
      const answer: unknown = await resolved(await filters.invokeCustomFilters(error, host), context as Attempted);
      if (answer === undefined || answer === null) throw error;
      return answer;
    }
  };
}
