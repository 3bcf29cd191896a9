// Finds @Task and @OnJobEvent methods among the application's providers and controllers.
import { type DiscoveryService, INQUIRER, type ModulesContainer, REQUEST } from '@nestjs/core';
import type { InstanceWrapper } from '@nestjs/core/injector/instance-wrapper.js';
import type { JobEventMetadata } from './decorators/on-job-event.decorator.js';
import type { TaskMetadata } from './decorators/task.decorator.js';
import { DEFAULT_INSTANCE, instanceOf, JOB_EVENT_METADATA, TASK_METADATA } from './jobs.constants.js';
import { decoratedClasses } from './decorators/decorated.method.js';
import { isStatic, type HandlerBinder } from './jobs.handlers.js';
import { makeOnce, type Trial } from './jobs.trial.js';
import { taskFaults } from './jobs.options.js';
import type { PayloadSchema } from './interfaces/task.interface.js';
import type { PayloadValidator } from './manager/payload.validator.js';
import type { TaskRegistry } from './manager/task.registry.js';
import { eventType, type JobEvents } from './monitoring/job.events.js';
import { faultOf, option, throwIfAny, section } from './validation.js';
import { rules } from './validation.rules.js';
import { prototypeOf, isOrExtends, isDecorated, decorationsOf, sourceOf } from './decorators/decorations.js';

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
  /** Hears what is no fault but probably not meant, and where a provider's class could not be found out. */
  warn: (message: string) => void;
}

const subscriberOptions = section({ instance: option(rules.name, DEFAULT_INSTANCE) });

/** Factories of Nest's core that make nothing by themselves. */
const NESTS_OWN: unknown[] = [REQUEST, INQUIRER];

/** Prototypes of classes that a warning has named, whichever instance of the module it was. */
const reported = new WeakSet<object>();

type Decorated = { method: string | symbol; source: string; wrapper: InstanceWrapper; prototype: object };

/**
 * Explores before providers are made, so that `addJob` knows the tasks' defaults from the first moment on; after that,
 * for providers of which only the instance tells the class (`useFactory`); and again for modules that are loaded later.
 */
export class JobsExplorer {
  /** With the prototype that has the decorations. */
  private readonly explored = new Map<InstanceWrapper, object>();
  /** Factories in request or transient scope that were tried: Nest keeps no instance of them. */
  private readonly trials = new Map<InstanceWrapper, Trial>();
  /** Whether providers have been made: Nest must not be asked for their scopes before, as it remembers its answer. */
  private made = false;
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
    throwIfAny([...this.instanceFaults(), ...this.exploreNew()]);
    this.warnOfUntyped();
    return this.parts.tasks;
  }

  /** Adds the tasks of what factories have made by now, and of modules that were loaded since. @throws as `explore` */
  async exploreInstances(): Promise<void> {
    this.made = true;
    const faults = this.exploreNew();
    if (this.missingClasses().length) faults.push(...(await this.exploreScopedFactories()));
    throwIfAny([...faults, ...this.handlerFaults(), ...this.subscriberFaults()]);
    this.warnOfUntyped();
  }

  /**
   * Names classes whose tasks nothing here runs, because no module provides them: Nest says nothing of such a class. Once
   * for each class in a process. `takes`: whether the pool takes jobs of the task.
   */
  warnOfMissing(takes: (task: string) => boolean): void {
    const { instance, tasks } = this.parts;
    const missing = this.missingClasses().flatMap((prototype) => {
      const names = decorationsOf<TaskMetadata>(TASK_METADATA, prototype, ({ task }) => task)
        .filter(({ options }) => (options?.instance ?? DEFAULT_INSTANCE) === instance)
        .map(({ task }) => task)
        .filter((task) => takes(task) && !tasks.get(task));
      if (!names.length || reported.has(prototype)) return [];
      reported.add(prototype);
      return [`${prototype.constructor.name} (${names.map((name) => `"${name}"`).join(', ')})`];
    });
    if (!missing.length) return;
    this.parts.warn(
      `No module provides these classes, so their tasks do not run here: ${missing.join('; ')}. Add each class to the ` +
        'providers of a module, and import that module.',
    );
  }

  private exploreNew(): string[] {
    return this.unexplored().flatMap((wrapper) => this.exploreProvider(wrapper, prototypeOf(wrapper, this.made)));
  }

  private unexplored(): InstanceWrapper[] {
    const { discovery } = this.parts;
    return [...discovery.getProviders(), ...discovery.getControllers()].filter(
      (wrapper) => !wrapper.isAlias && !this.explored.has(wrapper),
    );
  }

  /** Decorated classes of which no provider is known. Most belong to other processes or other specs. */
  private missingClasses(): object[] {
    const known = [...this.explored.values()];
    return decoratedClasses().filter((prototype) => !known.some((one) => isOrExtends(one, prototype)));
  }

  /**
   * A factory in request or transient scope whose token is not its class tells the class by an instance alone, of which
   * Nest keeps none. As a class is missing, it may be this one's: it is made once.
   */
  private async exploreScopedFactories(): Promise<string[]> {
    const faults: string[] = [];
    for (const wrapper of this.unexplored().filter(
      (one) => one.isFactory && !isStatic(one) && !NESTS_OWN.includes(one.token),
    )) {
      if (!this.trials.has(wrapper)) this.trials.set(wrapper, await makeOnce(wrapper));
      const prototype = this.trials.get(wrapper)!.prototype;
      const second = [...this.explored.values()].some((one) => one === prototype);
      if (!second) faults.push(...this.exploreProvider(wrapper, isDecorated(prototype) ? prototype : null));
    }
    this.warnOfFailures();
    return faults;
  }

  private warnOfFailures(): void {
    const classes = this.missingClasses();
    const missing = classes.map(({ constructor }) => constructor.name);
    for (const [wrapper, trial] of this.trials) {
      if (!missing.length || !trial.error) continue;
      this.parts.warn(
        `Expected a provider for ${missing.join(', ')}, got none. The factory of ${String(wrapper.name)} may be one: it ` +
          `is in request or transient scope, and does not tell its class without a request (${trial.error}). If it is, ` +
          `provide it under its class: { provide: ${missing.at(-1)}, useFactory: … }.`,
      );
      trial.error = null;
      for (const prototype of classes) reported.add(prototype);
    }
  }

  private exploreProvider(wrapper: InstanceWrapper, prototype: object | null): string[] {
    if (!prototype || this.isSecondName(wrapper)) return [];
    this.explored.set(wrapper, prototype);
    const place = (method: string | symbol): Decorated => ({
      method,
      wrapper,
      prototype,
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
    if (!isNotMetatype || typeof instance !== 'object' || instance === null) return false;
    return [...this.explored.keys()].some((other) => other.instance === instance);
  }

  private addTask(metadata: TaskMetadata, decorated: Decorated): string[] {
    const { task, options } = metadata;
    const { method, source, wrapper } = decorated;
    const where = `@Task on ${source}`;
    const faults = taskFaults(task, options, where);
    if (options?.batch && metadata.notAnArray !== null) {
      const expected = 'the first parameter of a batch handler to be an array of jobs (ClaimedJob<Payload>[])';
      faults.push(`${where}: Expected ${expected}, got ${metadata.notAnArray}.`);
    }
    const instance = options?.instance ?? DEFAULT_INSTANCE;
    if (faults.length) return faults;
    if (instance !== this.parts.instance) return this.refuseUnknown(instance, where);
    const { binder, tasks, validator } = this.parts;
    const schema = this.schemaOf(metadata);
    const missing =
      typeof schema === 'function' && !('~standard' in schema) ? validator.missingFor(task, schema) : null;
    if (missing) return [`${where}: ${missing.message}`];
    this.handlers.push(decorated);
    tasks.add({ task, options, schema, source, handler: binder.bind(wrapper, method) });
    return [];
  }

  /** A parameter's class without constraints needs no packages: it only says what the payload looks like. */
  private schemaOf({ task, options, parameterType, isTyped }: TaskMetadata): PayloadSchema | null {
    if (options.payload !== undefined) return options.payload || null;
    if (!isTyped && !options.batch) this.untyped.push(task);
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

  private subscribe({ type, options }: JobEventMetadata, decorated: Decorated): string[] {
    const { method, source, wrapper } = decorated;
    const where = `@OnJobEvent on ${source}`;
    const faults = [...faultOf('type', type, eventType), ...subscriberOptions.check(options, '')];
    if (faults.length) return faults.map((fault) => `${where}: ${fault}`);
    const instance = options?.instance ?? DEFAULT_INSTANCE;
    if (instance !== this.parts.instance) return this.refuseUnknown(instance, where);
    this.subscribers.push(decorated);
    const call = (event: unknown): unknown => (wrapper.instance as Record<string | symbol, Function>)[method]!(event);
    this.parts.events.on(type, Object.defineProperty(call, 'name', { value: where })); // what the log says if it throws
    return [];
  }

  private handlerFaults(): string[] {
    return this.handlers.flatMap(({ method, source, wrapper, prototype }) =>
      this.parts.binder
        .skippedEnhancers(wrapper, prototype, method)
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

  /** Other instances explore for themselves; a task of an instance that is not set up would be lost silently. */
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
