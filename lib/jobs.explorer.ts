// Finds @Task and @OnJobEvent methods and wraps handlers so that Nest's guards, pipes, interceptors and filters apply.
import { Inject, Injectable, type OnModuleInit, type Type } from '@nestjs/common';
import {
  GUARDS_METADATA,
  INTERCEPTORS_METADATA,
  EXCEPTION_FILTERS_METADATA,
  PIPES_METADATA,
  ROUTE_ARGS_METADATA,
} from '@nestjs/common/constants.js';
import {
  ApplicationConfig,
  ContextIdFactory,
  DiscoveryService,
  ExternalContextCreator,
  MetadataScanner,
  ModuleRef,
} from '@nestjs/core';
import type { InstanceWrapper } from '@nestjs/core/injector/instance-wrapper.js';
import { isObservable, lastValueFrom } from 'rxjs';
import type { JobEventMetadata } from './decorators/on-job-event.decorator.js';
import type { TaskMetadata } from './decorators/task.decorator.js';
import {
  DEFAULT_INSTANCE,
  JOB_EVENT_METADATA,
  JOBS_CONTEXT,
  TASK_ARGS_METADATA,
  TASK_METADATA,
} from './jobs.constants.js';
import type { TaskHandler, TaskRegistry } from './manager/task.registry.js';
import type { JobEvents } from './monitoring/job.events.js';
import { JobContext } from './worker/job.context.js';

type Method = (...args: unknown[]) => unknown;
type Host = Record<string, Method>;
type ContextId = ReturnType<typeof ContextIdFactory.create>;

/** How Nest names a parameter that is the request's body: what pipes such as ValidationPipe look at. */
const BODY = 3;
/** A parameter that is neither body, query nor path. */
const OTHER = 7;

export interface ExplorerTarget {
  instance: string;
  tasks: TaskRegistry;
  events: JobEvents;
  globalEnhancers: boolean;
}

export const EXPLORER_TARGET = Symbol('millrace explorer target');

@Injectable()
export class JobsExplorer implements OnModuleInit {
  private readonly contexts: ExternalContextCreator;

  constructor(
    @Inject(EXPLORER_TARGET) private readonly target: ExplorerTarget,
    private readonly discovery: DiscoveryService,
    private readonly scanner: MetadataScanner,
    private readonly moduleRef: ModuleRef,
    contexts: ExternalContextCreator,
  ) {
    this.contexts = contextsFor(contexts, target.globalEnhancers);
  }

  onModuleInit(): void {
    const explored = new Set<object>();
    for (const wrapper of [...this.discovery.getProviders(), ...this.discovery.getControllers()]) {
      const prototype = prototypeOf(wrapper);
      if (!prototype) continue;
      // One instance may be provided under several tokens; it still is one handler.
      const identity = isStatic(wrapper) ? (wrapper.instance as object) : wrapper;
      if (explored.has(identity)) continue;
      explored.add(identity);
      this.explore(wrapper, prototype);
    }
  }

  private explore(wrapper: InstanceWrapper, prototype: Host): void {
    for (const name of this.scanner.getAllMethodNames(prototype)) {
      const method = prototype[name]!;
      for (const task of metadataOf<TaskMetadata>(TASK_METADATA, method)) {
        if ((task.options.instance ?? DEFAULT_INSTANCE) === this.target.instance)
          this.addTask(task, wrapper, prototype, name);
      }
      for (const { type, instance } of metadataOf<JobEventMetadata>(JOB_EVENT_METADATA, method)) {
        if ((instance ?? DEFAULT_INSTANCE) !== this.target.instance) continue;
        this.target.events.on(type, (event) => (wrapper.instance as Host)[name]!(event));
      }
    }
  }

  private addTask(
    { task, options, schema }: TaskMetadata,
    wrapper: InstanceWrapper,
    prototype: Host,
    name: string,
  ): void {
    const source = `${prototype.constructor.name}.${name}`;
    this.target.tasks.add({ task, options, schema, source, handler: this.wrap(wrapper, prototype, name) });
  }

  private wrap(wrapper: InstanceWrapper, prototype: Host, name: string): TaskHandler {
    const method = prototype[name]!;
    const type = prototype.constructor as Type;
    const enhanced = this.target.globalEnhancers || isEnhanced(type, method, name);
    if (!isStatic(wrapper)) return this.perJob(wrapper, name, enhanced);
    if (enhanced) return this.throughNest(wrapper.instance as Host, name);
    // Called late, by name: spies and overrides of the method take effect.
    return async (payload: unknown, context: unknown) => resolved((wrapper.instance as Host)[name]!(payload, context));
  }

  /** Request scope: the provider and all it depends on are made anew for each job, which is injectable as REQUEST. */
  private perJob(wrapper: InstanceWrapper, name: string, enhanced: boolean): TaskHandler {
    return async (payload: unknown, context: JobContext) => {
      const contextId = ContextIdFactory.create();
      this.moduleRef.registerRequestByContextId(context.job, contextId);
      const host = await this.moduleRef.resolve<Host>(wrapper.token as string, contextId, { strict: false });
      if (!enhanced) return resolved(host[name]!(payload, context));
      return this.throughNest(host, name, contextId, wrapper.id)(payload, context);
    };
  }

  private throughNest(host: Host, name: string, contextId?: ContextId, inquirerId?: string): TaskHandler {
    const type = host.constructor as Type;
    const method = host[name]!;
    // Nest reads the handler's metadata from the function it is given; the call itself goes by name, late.
    const callback = new Proxy(method, {
      apply: (_method, self: Host, args: unknown[]) => self[name]!.apply(self, args),
    });
    describeArguments(type, name);
    const filters = this.target.globalEnhancers || has(EXCEPTION_FILTERS_METADATA, type, method);
    return this.contexts.create(
      host,
      callback,
      name,
      TASK_ARGS_METADATA,
      { exchangeKeyForValue: (kind: number, _data: unknown, args: unknown[]) => args[kind === BODY ? 0 : 1] },
      contextId,
      inquirerId,
      { guards: true, interceptors: true, filters },
      JOBS_CONTEXT as never,
    );
  }
}

/**
 * A creator of our own: without the application's global enhancers, unless they are asked for, since a JWT guard would
 * refuse every job; and with pipes that leave the context argument alone.
 */
function contextsFor(nest: ExternalContextCreator, globalEnhancers: boolean): ExternalContextCreator {
  const { container } = nest as unknown as { container: object };
  const scope: PropertyDescriptorMap = globalEnhancers ? {} : { applicationConfig: { value: new ApplicationConfig() } };
  const contexts = ExternalContextCreator.fromContainer(Object.create(container, scope) as never);
  const getParamValue = contexts.getParamValue.bind(contexts);
  contexts.getParamValue = async (value: any, metadata: any, pipes: any) =>
    (value as unknown) instanceof JobContext ? value : getParamValue(value, metadata, pipes);
  return contexts;
}

/** Tells Nest what the handler's parameters are: the payload, the context, and what parameter decorators say. */
function describeArguments(type: Type, name: string): void {
  const decorated = (Reflect.getMetadata(ROUTE_ARGS_METADATA, type, name) ?? {}) as Record<string, { index: number }>;
  const taken = new Set(Object.values(decorated).map(({ index }) => index));
  const ours = [`${BODY}:0`, `${OTHER}:1`].filter((_key, index) => !taken.has(index));
  const plain = Object.fromEntries(
    ours.map((key) => [key, { index: Number(key.split(':')[1]), data: undefined, pipes: [] }]),
  );
  Reflect.defineMetadata(TASK_ARGS_METADATA, { ...plain, ...decorated }, type, name);
}

const ENHANCERS = [GUARDS_METADATA, INTERCEPTORS_METADATA, EXCEPTION_FILTERS_METADATA, PIPES_METADATA];

const isEnhanced = (type: Type, method: Method, name: string): boolean =>
  ENHANCERS.some((key) => has(key, type, method)) || Reflect.hasMetadata(ROUTE_ARGS_METADATA, type, name);

const has = (key: string, type: Type, method: Method): boolean =>
  Reflect.hasMetadata(key, type) || Reflect.hasMetadata(key, method);

const metadataOf = <T>(key: string, method: Method): T[] => (Reflect.getMetadata(key, method) ?? []) as T[];

const isStatic = (wrapper: InstanceWrapper): boolean => wrapper.isDependencyTreeStatic() && !wrapper.isTransient;

/** Where the provider's methods are; factories and values have only their instance to tell. */
function prototypeOf(wrapper: InstanceWrapper): Host | null {
  if (wrapper.isAlias) return null;
  if (isStatic(wrapper)) {
    const instance = wrapper.instance as unknown;
    return typeof instance === 'object' && instance !== null ? (Object.getPrototypeOf(instance) as Host | null) : null;
  }
  const { metatype } = wrapper;
  return typeof metatype === 'function' && !wrapper.isNotMetatype ? ((metatype as Type).prototype as Host) : null;
}

const resolved = (answer: unknown): unknown => (isObservable(answer) ? lastValueFrom(answer) : answer);
