// Finds @Task and @OnJobEvent methods among the application's providers and controllers.
import { DiscoveryService, ModulesContainer } from '@nestjs/core';
import type { InstanceWrapper } from '@nestjs/core/injector/instance-wrapper.js';
import type { JobEventMetadata } from './decorators/on-job-event.decorator.js';
import type { TaskMetadata } from './decorators/task.decorator.js';
import { DEFAULT_INSTANCE, instanceOf, JOB_EVENT_METADATA, TASK_METADATA } from './jobs.constants.js';
import { isStatic, type HandlerBinder } from './jobs.handlers.js';
import { taskFaults } from './jobs.options.js';
import type { PayloadSchema } from './interfaces/task.interface.js';
import type { PayloadValidator } from './manager/payload.validator.js';
import type { TaskRegistry } from './manager/task.registry.js';
import { eventType, type JobEvents } from './monitoring/job.events.js';
import { faultOf, option, refuse, section } from './validation.js';
import { rules } from './validation.rules.js';

export interface JobsExplorerParts {
  /** The name of the instance whose tasks are looked for. */
  instance: string;
  discovery: DiscoveryService;
  modules: ModulesContainer;
  binder: HandlerBinder;
  tasks: TaskRegistry;
  events: JobEvents;
  /** With its packages loaded. */
  validator: PayloadValidator;
  /** Hears what is no fault but probably not meant. */
  warn: (message: string) => void;
}

const subscriberOptions = section({ instance: option(rules.name, DEFAULT_INSTANCE) });

type Decorated = { method: string | symbol; source: string; wrapper: InstanceWrapper };

/**
 * Explores twice: before providers are made, so that `addJob` knows the tasks' defaults from the first moment on, and
 * after that, for providers of which only the instance tells the class (`useFactory`).
 */
export class JobsExplorer {
  private readonly explored = new Set<InstanceWrapper>();
  private readonly handlers: Decorated[] = [];
  private readonly subscribers: Decorated[] = [];
  /** Tasks whose payloads may have a DTO that nothing here can see. */
  private untyped: string[] = [];

  constructor(private readonly parts: JobsExplorerParts) {}

  /**
   * The tasks of all classes.
   *
   * @throws DuplicateTaskError, or InvalidOptionsError listing every fault of the decorations found
   */
  explore(): TaskRegistry {
    refuse([...this.instanceFaults(), ...this.exploreNew()]);
    this.warnOfUntyped();
    return this.parts.tasks;
  }

  /** Adds the tasks of what factories have made by now. @throws as `explore` */
  exploreInstances(): void {
    refuse([...this.exploreNew(), ...this.handlerFaults(), ...this.subscriberFaults()]);
    this.warnOfUntyped();
  }

  private exploreNew(): string[] {
    const { discovery } = this.parts;
    return [...discovery.getProviders(), ...discovery.getControllers()]
      .filter((wrapper) => !wrapper.isAlias && !this.explored.has(wrapper))
      .flatMap((wrapper) => this.exploreProvider(wrapper));
  }

  private exploreProvider(wrapper: InstanceWrapper): string[] {
    const prototype = prototypeOf(wrapper);
    if (!prototype || this.isSecondName(wrapper)) return [];
    this.explored.add(wrapper);
    const place = (method: string | symbol): Decorated => ({
      method,
      wrapper,
      source: sourceOf(wrapper, prototype, method),
    });
    return [
      ...decorationsOf<TaskMetadata>(
        TASK_METADATA,
        prototype,
        ({ method, task }) => `${String(method)} ${task}`,
      ).flatMap((metadata) => this.addTask(metadata, place(metadata.method))),
      ...decorationsOf<JobEventMetadata>(
        JOB_EVENT_METADATA,
        prototype,
        ({ method, type }) => `${String(method)} ${type}`,
      ).flatMap((metadata) => this.subscribe(metadata, place(metadata.method))),
    ];
  }

  /** A factory or value may hand out what another provider is already. */
  private isSecondName({ isNotMetatype, instance }: InstanceWrapper): boolean {
    return isNotMetatype && [...this.explored].some((other) => other.instance === instance);
  }

  private addTask(metadata: TaskMetadata, { method, source, wrapper }: Decorated): string[] {
    const { task, options } = metadata;
    const where = `@Task on ${source}`;
    const faults = taskFaults(task, options, where);
    const instance = options?.instance ?? DEFAULT_INSTANCE;
    if (faults.length) return faults;
    if (instance !== this.parts.instance) return this.refuseUnknown(instance, where);
    const { binder, tasks, validator } = this.parts;
    const schema = this.schemaOf(metadata);
    const missing =
      typeof schema === 'function' && !('~standard' in schema) ? validator.missingFor(task, schema) : null;
    if (missing) return [`${where}: ${missing.message}`];
    this.handlers.push({ method, source, wrapper });
    tasks.add({ task, options, schema, source, handler: binder.bind(wrapper, method) });
    return [];
  }

  /** A parameter's class without constraints needs no packages: it only says what the payload looks like. */
  private schemaOf({ task, options, parameterType, isTyped }: TaskMetadata): PayloadSchema | null {
    if (options.payload !== undefined) return options.payload || null;
    if (!isTyped) this.untyped.push(task);
    const { validator } = this.parts;
    const isOfUse = parameterType && (validator.makesInstances || validator.constrains(parameterType));
    return isOfUse ? parameterType : null;
  }

  /** Compilers such as esbuild (tsx, Vitest) leave out what tells the class of a parameter. */
  private warnOfUntyped(): void {
    if (!this.untyped.length) return;
    const tasks = this.untyped.map((task) => `"${task}"`).join(', ');
    this.untyped = [];
    this.parts.warn(
      `Payloads of ${tasks} are not checked: the compiler writes no types of parameters (esbuild, and so tsx, never ` +
        'does; others need emitDecoratorMetadata). Name the DTO in the decorator, @Task(name, { payload: Dto }), or ' +
        'say payload: false if there is none.',
    );
  }

  private subscribe({ type, options }: JobEventMetadata, { method, source, wrapper }: Decorated): string[] {
    const where = `@OnJobEvent on ${source}`;
    const faults = [...faultOf('type', type, eventType), ...subscriberOptions.check(options, '')];
    if (faults.length) return faults.map((fault) => `${where}: ${fault}`);
    const instance = options?.instance ?? DEFAULT_INSTANCE;
    if (instance !== this.parts.instance) return this.refuseUnknown(instance, where);
    this.subscribers.push({ method, source, wrapper });
    this.parts.events.on(type, (event) => (wrapper.instance as Record<string | symbol, Function>)[method]!(event));
    return [];
  }

  private handlerFaults(): string[] {
    return this.handlers.flatMap(({ method, source, wrapper }) =>
      this.parts.binder
        .skippedEnhancers(wrapper, method)
        .map(
          (name) =>
            `@Task on ${source}: Nest does not apply ${name}, because the provider comes from a factory or is a value. ` +
            `Provide the class itself, or decorate with an instance (new ${name}()).`,
        ),
    );
  }

  /** Scopes are known when dependencies are. */
  private subscriberFaults(): string[] {
    return this.subscribers
      .filter(({ wrapper }) => !isStatic(wrapper))
      .map(
        ({ source }) => `@OnJobEvent on ${source}: Expected a singleton, got a provider in request or transient scope.`,
      );
  }

  /** Other instances explore for themselves; a task of an instance that nobody has set up would be lost silently. */
  private refuseUnknown(instance: string, where: string): string[] {
    const known = this.instances();
    if (known.includes(instance)) return [];
    return faultOf('instance', instance, rules.oneOf(...known)).map((fault) => `${where}: ${fault}`);
  }

  private instanceFaults(): string[] {
    const { instance } = this.parts;
    if (this.instances().filter((other) => other === instance).length < 2) return [];
    return [
      `Expected JobsModule.forRoot once for each name, got it more often for "${instance}". Import it in the root module.`,
    ];
  }

  private instances(): string[] {
    const modules = [...this.parts.modules.values()];
    return modules.flatMap(({ providers }) => [...providers.keys()].flatMap((token) => instanceOf(token) ?? []));
  }
}

/**
 * Where a provider's decorations are. Factories and values tell only by their instance, which a factory may not have
 * made yet; one that stands in for a class (`overrideProvider(MailTasks).useValue(…)`) has that class's decorations.
 */
function prototypeOf({ isNotMetatype, metatype, instance, token }: InstanceWrapper): object | null {
  if (!isNotMetatype) return (metatype?.prototype ?? null) as object | null;
  if (typeof instance !== 'object' || instance === null) return null;
  const own = Object.getPrototypeOf(instance) as object | null;
  return isDecorated(own) || typeof token !== 'function' ? own : (token.prototype as object);
}

const isDecorated = (prototype: object | null): boolean =>
  prototype !== null && [TASK_METADATA, JOB_EVENT_METADATA].some((key) => Reflect.hasMetadata(key, prototype));

/** The decorations of a class and of those that it extends; a decoration that is repeated in a subclass counts once. */
function decorationsOf<T>(key: string, prototype: object, identify: (decoration: T) => string): T[] {
  const found = new Map<string, T>();
  for (let level: object | null = prototype; level; level = Object.getPrototypeOf(level) as object | null) {
    for (const decoration of (Reflect.getOwnMetadata(key, level) ?? []) as T[]) {
      if (!found.has(identify(decoration))) found.set(identify(decoration), decoration);
    }
  }
  return [...found.values()];
}

const sourceOf = ({ host }: InstanceWrapper, prototype: object, method: string | symbol): string =>
  `${prototype.constructor.name}.${String(method)}${host ? ` in ${host.name}` : ''}`;
