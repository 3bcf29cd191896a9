// Turns a provider's method into a task's handler.
import {
  EXCEPTION_FILTERS_METADATA,
  GUARDS_METADATA,
  INTERCEPTORS_METADATA,
  PIPES_METADATA,
} from '@nestjs/common/constants.js';
import { ContextIdFactory, ModuleRef } from '@nestjs/core';
import type { ContextId, InstanceWrapper } from '@nestjs/core/injector/instance-wrapper.js';
import { decoratedParameters } from './decorators/task.decorator.js';
import { original, resolved, type HandlerContexts, type Host } from './jobs.contexts.js';
import type { TaskHandler } from './manager/task.registry.js';
import type { JobContext } from './worker/job.context.js';

const ENHANCERS = [GUARDS_METADATA, INTERCEPTORS_METADATA, PIPES_METADATA, EXCEPTION_FILTERS_METADATA];

/** Whether one instance serves all jobs. Known once the providers have been made. */
export const isStatic = (wrapper: InstanceWrapper): boolean => wrapper.isDependencyTreeStatic() && !wrapper.isTransient;

export class HandlerBinder {
  constructor(private readonly contexts: HandlerContexts) {}

  /** The handler's provider need not have been made yet: it is looked at when the first job comes. */
  bind(wrapper: InstanceWrapper, method: string | symbol): TaskHandler {
    let handler: TaskHandler | null = null;
    return (payload, context) => (handler ??= this.handlerOf(wrapper, method))(payload, context);
  }

  /**
   * Enhancers that Nest would skip silently: it only makes instances of the guards and so on that a class names
   * if it sees the class, which it does not for providers made by `useFactory` and `useValue`.
   */
  skippedEnhancers(wrapper: InstanceWrapper, prototype: object, method: string | symbol): string[] {
    return ENHANCERS.flatMap((key) => enhancersOf(key, (wrapper.instance ?? Object.create(prototype)) as Host, method))
      .filter((enhancer) => typeof enhancer === 'function' && !wrapper.host?.injectables.has(enhancer as never))
      .map((enhancer) => (enhancer as Function).name);
  }

  private handlerOf(wrapper: InstanceWrapper, method: string | symbol): TaskHandler {
    if (!isStatic(wrapper) || this.contexts.scopedGlobals().length) {
      return (payload, context) => this.runScoped(wrapper, method, payload, context as Partial<JobContext>);
    }
    const host = wrapper.instance as Host;
    return this.isEnhanced(host, method) ? this.contexts.wrap(wrapper, host, method) : plain(host, method);
  }

  /** Creates the provider and all it depends on for each job; the job, or the array of a batch, is injectable as REQUEST. */
  private async runScoped(
    wrapper: InstanceWrapper,
    method: string | symbol,
    payload: unknown,
    context: Partial<Pick<JobContext, 'job'>>,
  ): Promise<unknown> {
    const request = (context.job ?? payload) as object;
    const contextId = ContextIdFactory.getByRequest(request as Record<string, unknown>);
    const moduleRef = moduleRefOf(wrapper);
    moduleRef.registerRequestByContextId(request, contextId);
    const host = await moduleRef.resolve<Host>(wrapper.token, contextId, { strict: true });
    await Promise.all(this.contexts.scopedGlobals().map((one) => makeFor(wrapper, one, contextId)));
    const enhanced = this.isEnhanced(host, method);
    const handler = enhanced ? this.contexts.wrap(wrapper, host, method, contextId) : plain(host, method);
    return handler(payload, context);
  }

  private isEnhanced(host: Host, method: string | symbol): boolean {
    if (this.contexts.globalEnhancers || decoratedParameters(host.constructor, method).size > 0) return true;
    return ENHANCERS.some((key) => enhancersOf(key, host, method).length > 0);
  }
}

/** Without enhancers Nest has nothing to add. The method is looked up by each call, so that spies take effect. */
const plain =
  (host: Host, method: string | symbol): TaskHandler =>
  async (payload, context) =>
    resolved(await host[method]!(payload, context), context as JobContext);

const enhancersOf = (key: string, host: Host, method: string | symbol): unknown[] =>
  [host.constructor, original(host, method)].flatMap((place) => (Reflect.getMetadata(key, place) ?? []) as unknown[]);

export const moduleRefOf = ({ host }: InstanceWrapper): ModuleRef =>
  host!.providers.get(ModuleRef)!.instance as ModuleRef;

/** Nest makes a handler's own enhancers with it, but global ones only for routes. */
async function makeFor(handler: InstanceWrapper, enhancer: InstanceWrapper, contextId: ContextId): Promise<void> {
  await moduleRefOf(enhancer).resolve(enhancer.token, contextId, { strict: true });
  const made = enhancer.getInstanceByContextId(contextId, enhancer.id);
  enhancer.setInstanceByContextId(contextId, made, handler.id);
}
