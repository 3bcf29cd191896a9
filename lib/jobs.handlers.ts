// Turns a provider's method into a task's handler, with Nest's guards, pipes, interceptors and exception filters.
import {
  EXCEPTION_FILTERS_METADATA,
  GUARDS_METADATA,
  INTERCEPTORS_METADATA,
  PIPES_METADATA,
  ROUTE_ARGS_METADATA,
} from '@nestjs/common/constants.js';
import type { Type } from '@nestjs/common';
import { ApplicationConfig, ContextIdFactory, ExternalContextCreator, ModuleRef } from '@nestjs/core';
import type { ExternalExceptionFilterContext } from '@nestjs/core/exceptions/external-exception-filter-context.js';
import type { ExternalExceptionsHandler } from '@nestjs/core/exceptions/external-exceptions-handler.js';
import { ExecutionContextHost } from '@nestjs/core/helpers/execution-context-host.js';
import type { ContextId, InstanceWrapper } from '@nestjs/core/injector/instance-wrapper.js';
import { isObservable, lastValueFrom } from 'rxjs';
import { decoratedParameters } from './decorators/task.decorator.js';
import { JOBS_CONTEXT, TASK_ARGS_METADATA } from './jobs.constants.js';
import type { TaskHandler } from './manager/task.registry.js';
import type { JobContext } from './worker/job.context.js';

type Method = (...args: unknown[]) => unknown;
type Host = Record<string | symbol, Method> & { constructor: Type };

/** How Nest numbers a parameter that is the request's body: what pipes such as ValidationPipe look at. */
const PAYLOAD = 3;
/** A number that no parameter decorator of Nest's has. */
const CONTEXT = 1_000;

/** Which of Nest's parts have private members that are needed here; the same in Nest 11 and 12. */
interface CreatorInternals {
  container: object;
  filtersContextCreator: ExternalExceptionFilterContext;
}

export class HandlerBinder {
  private readonly creator: ExternalContextCreator;

  /**
   * Global enhancers (`APP_GUARD`, `app.useGlobalPipes()` …) run on jobs only if asked for: a JWT guard would refuse
   * every job.
   */
  constructor(
    nest: ExternalContextCreator,
    private readonly globalEnhancers: boolean,
  ) {
    this.creator = creatorOf(nest, globalEnhancers);
  }

  /** The handler's provider may not have been made yet; it is looked at when the first job comes. */
  bind(wrapper: InstanceWrapper, method: string | symbol): TaskHandler {
    let handler: TaskHandler | null = null;
    return (payload, context) => (handler ??= this.handlerOf(wrapper, method))(payload, context);
  }

  private handlerOf(wrapper: InstanceWrapper, method: string | symbol): TaskHandler {
    if (!isStatic(wrapper)) return (payload, context) => this.runScoped(wrapper, method, payload, context);
    const host = wrapper.instance as Host;
    return this.isEnhanced(host, method) ? this.enhanced(wrapper, host, method) : plain(host, method);
  }

  /** The provider and all it depends on are made anew for each job, which is injectable as REQUEST. */
  private async runScoped(
    wrapper: InstanceWrapper,
    method: string | symbol,
    payload: unknown,
    context: JobContext,
  ): Promise<unknown> {
    const contextId = ContextIdFactory.getByRequest(context.job);
    const moduleRef = wrapper.host!.providers.get(ModuleRef)!.instance as ModuleRef;
    moduleRef.registerRequestByContextId(context.job, contextId);
    const host = await moduleRef.resolve<Host>(wrapper.token, contextId, { strict: true });
    const handler = this.isEnhanced(host, method)
      ? this.enhanced(wrapper, host, method, contextId)
      : plain(host, method);
    return handler(payload, context);
  }

  private enhanced(wrapper: InstanceWrapper, host: Host, method: string | symbol, contextId?: ContextId): TaskHandler {
    const callback = lateCallback(host, method);
    describeParameters(host.constructor, method);
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
    const filters = filtersContextCreator.create(host, callback as never, wrapper.host!.token, contextId, wrapper.id);
    return filtered(run, filters);
  }

  private isEnhanced(host: Host, method: string | symbol): boolean {
    if (this.globalEnhancers || decoratedParameters(host.constructor, method).size > 0) return true;
    return ENHANCERS.some(
      (key) => Reflect.hasMetadata(key, host.constructor) || Reflect.hasMetadata(key, original(host, method)),
    );
  }
}

const ENHANCERS = [GUARDS_METADATA, INTERCEPTORS_METADATA, EXCEPTION_FILTERS_METADATA, PIPES_METADATA];

/** Whether one instance serves all jobs. */
export const isStatic = (wrapper: InstanceWrapper): boolean => wrapper.isDependencyTreeStatic() && !wrapper.isTransient;

/** Without enhancers Nest has nothing to add. The method is looked up by each call, so that spies take effect. */
const plain =
  (host: Host, method: string | symbol): TaskHandler =>
  async (payload, context) =>
    resolved(await host[method]!(payload, context));

const resolved = (answer: unknown): unknown => (isObservable(answer) ? lastValueFrom(answer) : answer);

/** What the class says, whatever has been put over it on the instance. */
const original = (host: Host, method: string | symbol): Method =>
  (Object.getPrototypeOf(host) as Host)[method] ?? host[method]!;

/** Calls by name, late, and has the metadata of the method by inheriting from it. */
function lateCallback(host: Host, method: string | symbol): Method {
  const call = (...args: unknown[]): unknown => host[method]!(...args);
  return Object.setPrototypeOf(call, original(host, method)) as Method;
}

/**
 * A creator of contexts of our own: with or without the application's global enhancers, and with pipes that pass the
 * context argument by, since they are for payloads.
 */
function creatorOf(nest: ExternalContextCreator, globalEnhancers: boolean): ExternalContextCreator {
  const { container } = nest as unknown as CreatorInternals;
  const without = { applicationConfig: { value: new ApplicationConfig() } };
  const creator = ExternalContextCreator.fromContainer(
    Object.create(container, globalEnhancers ? {} : without) as never,
  );
  const applyPipes = creator.getParamValue.bind(creator);
  creator.getParamValue = async (value: any, metadata: any, pipes) =>
    metadata.type === CONTEXT ? value : (applyPipes(value, metadata, pipes) as unknown);
  return creator;
}

/**
 * Tells Nest what the handler's parameters are: decorated ones get what their decorator says, the others the payload and
 * the context, in this order.
 */
function describeParameters(type: Type, method: string | symbol): void {
  const decorated = (Reflect.getMetadata(ROUTE_ARGS_METADATA, type, method) ?? {}) as object;
  const taken = decoratedParameters(type, method);
  const [first, second] = Array.from({ length: taken.size + 2 }, (_, index) => index).filter(
    (index) => !taken.has(index),
  );
  const parameter = (index: number | undefined): object => ({ index, data: undefined, pipes: [] });
  const ours = { [`${PAYLOAD}:${first}`]: parameter(first), [`${CONTEXT}:${second}`]: parameter(second) };
  Reflect.defineMetadata(TASK_ARGS_METADATA, { ...ours, ...decorated }, type, method);
}

/** A `@Body()` of a method that is a route as well is the payload, or a property of it; there is no other request. */
function argumentOf(kind: number, property: unknown, [payload, context]: unknown[]): unknown {
  if (kind === CONTEXT) return context;
  if (kind !== PAYLOAD) return undefined;
  return typeof property === 'string' ? (payload as Record<string, unknown> | null)?.[property] : payload;
}

/**
 * What a filter throws is how the job fails; what it returns is the handler's answer. If it returns nothing, the error
 * stands: a filter that only reports must not turn a failure into a success.
 */
function filtered(run: TaskHandler, filters: ExternalExceptionsHandler): TaskHandler {
  return async (payload, context) => {
    try {
      return await run(payload, context);
    } catch (error) {
      const host = new ExecutionContextHost([payload, context]);
      host.setType(JOBS_CONTEXT);
      const answer: unknown = await resolved(await filters.invokeCustomFilters(error, host));
      if (answer === undefined || answer === null) throw error;
      return answer;
    }
  };
}
