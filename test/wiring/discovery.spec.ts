import {
  Controller,
  Get,
  Inject,
  Injectable,
  Module,
  type ModuleMetadata,
  type Provider,
  Scope,
  UseGuards,
} from '@nestjs/common';
import { LazyModuleLoader, REQUEST } from '@nestjs/core';
import { afterAll, afterEach, beforeAll, describe, expect, it } from '@jest/globals';
import { of } from 'rxjs';
import {
  DuplicateTaskError,
  InvalidOptionsError,
  type Job,
  type JobContext,
  JobManager,
  JobsModule,
  OnJobEvent,
  Task,
  type TaskOptions,
} from '../../lib/index.js';
import { applicationsOnOneDatabase, attempt, type Applications } from '../support/app.js';

@Injectable()
class Greeter {
  greet(name: string): string {
    return `hello ${name}`;
  }
}

@Injectable()
class GreetTasks {
  constructor(private readonly greeter: Greeter) {}

  @Task('greet')
  greet(name: string): string {
    return this.greeter.greet(name);
  }
}

describe('@Task', () => {
  let apps: Applications;

  beforeAll(async () => {
    apps = await applicationsOnOneDatabase();
  });
  afterEach(() => apps.close());
  afterAll(() => apps.drop());

  const application = (metadata: ModuleMetadata): ModuleMetadata => ({
    imports: [JobsModule.forRoot({ connection: apps.database.url })],
    ...metadata,
  });

  it('is found on a provider, with what its constructor injects', async () => {
    const app = await apps.start(application({ providers: [Greeter, GreetTasks] }));
    expect((await attempt(app, 'greet', 'Ada')).result).toBe('hello Ada');
  });

  it('is found on a controller, beside its routes', async () => {
    @Controller('greetings')
    class GreetController {
      constructor(private readonly greeter: Greeter) {}

      @Get()
      @Task('greet-route')
      greet(name: string): string {
        return this.greeter.greet(name);
      }
    }
    const app = await apps.start(application({ providers: [Greeter], controllers: [GreetController] }));
    expect((await attempt(app, 'greet-route', 'Ada')).result).toBe('hello Ada');
  });

  it.each([
    ['a factory', { provide: 'T', inject: [Greeter], useFactory: async (greeter: Greeter) => new GreetTasks(greeter) }],
    ['a value', { provide: 'T', useValue: new GreetTasks(new Greeter()) }],
    ['a class under a token', { provide: 'T', useClass: GreetTasks }],
  ])('is found on %s', async (_kind, provider) => {
    const app = await apps.start(application({ providers: [Greeter, provider] }));
    expect((await attempt(app, 'greet', 'Ada')).result).toBe('hello Ada');
  });

  it('goes to what stands in for its class in a test', async () => {
    const stub = { greet: (name: string) => `stubbed ${name}` };
    const app = await apps.start(application({ providers: [{ provide: GreetTasks, useValue: stub }] }));
    expect((await attempt(app, 'greet', 'Ada')).result).toBe('stubbed Ada');
  });

  it('counts once where a provider has a second name', async () => {
    const alias = { provide: 'ALIAS', useExisting: GreetTasks };
    const handedOut = { provide: 'SAME', inject: [GreetTasks], useFactory: (tasks: GreetTasks) => tasks };
    const app = await apps.start(application({ providers: [Greeter, GreetTasks, alias, handedOut] }));
    expect((await attempt(app, 'greet', 'Ada')).result).toBe('hello Ada');
  });

  it('is inherited, and what overrides its method is called', async () => {
    @Injectable()
    class PoliteTasks extends GreetTasks {
      override greet(name: string): string {
        return `${super.greet(name)}, how do you do`;
      }
    }
    const app = await apps.start(application({ providers: [Greeter, PoliteTasks] }));
    expect((await attempt(app, 'greet', 'Ada')).result).toBe('hello Ada, how do you do');
  });

  it('outlives decorators that put another function in the method’s place', async () => {
    const shouting: MethodDecorator = (_target, _key, descriptor: PropertyDescriptor) => {
      const method = descriptor.value as (payload: string) => string;
      descriptor.value = function (this: unknown, payload: string) {
        return method.call(this, payload).toUpperCase();
      };
    };
    @Injectable()
    class ShoutTasks {
      @shouting
      @Task('shout')
      shout(word: string): string {
        return word;
      }
    }
    const app = await apps.start(application({ providers: [ShoutTasks] }));
    expect((await attempt(app, 'shout', 'ada')).result).toBe('ADA');
  });

  it('may stand more than once on a method', async () => {
    @Injectable()
    class TwoNames {
      @Task('old-name')
      @Task('new-name')
      run(_payload: unknown, ctx: JobContext): string {
        return ctx.job.task;
      }
    }
    const app = await apps.start(application({ providers: [TwoNames] }));
    expect((await attempt(app, 'old-name')).result).toBe('old-name');
    expect((await attempt(app, 'new-name')).result).toBe('new-name');
  });

  it('may return an observable, whose last value is the result', async () => {
    @Injectable()
    class Streams {
      @Task('stream')
      run() {
        return of(1, 2, 3);
      }
    }
    const app = await apps.start(application({ providers: [Streams] }));
    expect((await attempt(app, 'stream')).result).toBe(3);
  });

  it('on a provider in request scope gets a new one for each job, with the job as REQUEST', async () => {
    let made = 0;
    @Injectable({ scope: Scope.REQUEST })
    class Tenant {
      constructor(@Inject(REQUEST) readonly job: Job<{ tenant: string }>) {
        made++;
      }
    }
    @Injectable()
    class TenantTasks {
      constructor(private readonly tenant: Tenant) {}

      @Task('tenant')
      run(_payload: unknown, ctx: JobContext): unknown {
        return [this.tenant.job.payload.tenant, this.tenant.job.id === ctx.job.id];
      }
    }
    const app = await apps.start(application({ providers: [Tenant, TenantTasks] }));
    const results = await Promise.all(['a', 'b', 'c'].map((tenant) => attempt(app, 'tenant', { tenant })));
    expect(results.map(({ result }) => result)).toEqual(['a', 'b', 'c'].map((tenant) => [tenant, true]));
    expect(made).toBe(3);
  });

  it('on a provider in transient scope, or a controller in request scope, gets a new one for each job, too', async () => {
    @Injectable({ scope: Scope.TRANSIENT })
    class Counting {
      private calls = 0;

      @Task('transient')
      run(): number {
        return ++this.calls;
      }
    }
    @Controller({ path: 'scoped', scope: Scope.REQUEST })
    class ScopedController {
      constructor(@Inject(REQUEST) private readonly job: Job) {}

      @Task('scoped-controller')
      run(): string {
        return this.job.task;
      }
    }
    const app = await apps.start(application({ providers: [Counting], controllers: [ScopedController] }));
    expect((await attempt(app, 'transient')).result).toBe(1);
    expect((await attempt(app, 'transient')).result).toBe(1);
    expect((await attempt(app, 'scoped-controller')).result).toBe('scoped-controller');
  });

  describe('on factories in request or transient scope', () => {
    @Injectable({ scope: Scope.REQUEST })
    class Tenant {}
    class JobTasks {
      constructor(readonly job?: Job) {}

      @Task('of-factory')
      run(): string {
        return this.job?.id ?? 'no job';
      }
    }
    const useFactory = (job?: Job): JobTasks => new JobTasks(job);

    it.each<[string, Provider[]]>([
      ['its class, injecting REQUEST', [{ provide: JobTasks, inject: [REQUEST], useFactory }]],
      ['a string, injecting REQUEST', [{ provide: 'T', inject: [REQUEST], useFactory }]],
      [
        'a symbol, reading the request',
        [
          {
            provide: Symbol('T'),
            inject: [REQUEST],
            useFactory: (job: Job<{ tenant: string }>) => (job.payload.tenant, useFactory(job)),
          },
        ],
      ],
      ['a base class', [{ provide: Tenant, inject: [REQUEST], useFactory }]],
    ])('is found under %s', async (_token, providers) => {
      const app = await apps.start(application({ providers }));
      const record = await attempt(app, 'of-factory');
      expect(record.result).toBe(record.jobId);
    });

    it.each<[string, Provider[]]>([
      ['request scope', [{ provide: JobTasks, scope: Scope.REQUEST, useFactory: () => new JobTasks() }]],
      ['transient scope', [{ provide: 'T', scope: Scope.TRANSIENT, useFactory: () => new JobTasks() }]],
      ['scope by a dependency', [Tenant, { provide: 'T', inject: [Tenant], useFactory: async () => new JobTasks() }]],
    ])('is found in %s', async (_scope, providers) => {
      const app = await apps.start(application({ providers }));
      expect((await attempt(app, 'of-factory')).result).toBe('no job');
    });

    it('counts once where the factory hands out another provider', async () => {
      const app = await apps.start(
        application({
          providers: [
            { provide: JobTasks, scope: Scope.REQUEST, useFactory: () => new JobTasks() },
            { provide: 'SAME', inject: [JobTasks], useFactory: (tasks: JobTasks) => tasks },
          ],
        }),
      );
      expect((await attempt(app, 'of-factory')).result).toBe('no job');
    });

    it('has guards of which Nest would make no instances refused at start', async () => {
      @Injectable()
      class Closed {
        canActivate = (): boolean => false;
      }
      class GuardedTasks {
        @UseGuards(Closed)
        @Task('guarded-factory')
        run(): void {}
      }
      const provider = { provide: GuardedTasks, scope: Scope.REQUEST, useFactory: () => new GuardedTasks() };
      const failure = await apps.startFailure(application({ providers: [provider] }));
      expect(failure.message).toMatch(/GuardedTasks\.run .*Nest does not apply Closed/);
    });

    it('is asked for where the factory needs a request to tell', async () => {
      class NeedyTasks {
        @Task('needy')
        run(): void {}
      }
      const needy = { provide: 'NEEDY', inject: [REQUEST], useFactory: (job: any) => job.user.id && new NeedyTasks() };
      await apps.start(application({ providers: [needy] }));
      expect(apps.logger.of('warn')).toEqual([
        expect.stringMatching(
          /a provider for .*NeedyTasks, got none. The factory of NEEDY may be one: .*\{ provide: NeedyTasks, useFactory/,
        ),
      ]);
    });
  });

  it('on a class that no module provides is named in a warning, once, where a pool runs', async () => {
    class LostTasks {
      @Task('lost')
      run(): void {}

      @Task('lost-elsewhere', { instance: 'elsewhere' })
      elsewhere(): void {}
    }
    class OldGreetTasks {
      @Task('greet')
      run(): void {}
    }
    class RestTasks {
      @Task('lost-to-others')
      run(): void {}
    }
    const warned = (): string[] => apps.logger.of('warn').filter((line) => /Lost|OldGreet|Rest/.test(line));
    const providers = [Greeter, GreetTasks];
    const start = (worker: { taskIdentifiers: string[] } | false) =>
      apps.start({ imports: [JobsModule.forRoot({ connection: apps.database.url, worker })], providers });
    await start(false);
    expect(warned()).toEqual([]);
    await start({ taskIdentifiers: ['greet', 'lost'] });
    await start({ taskIdentifiers: ['greet', 'lost'] });
    expect(warned()).toEqual([expect.stringMatching(/^No module provides .*LostTasks \("lost"\).* to the providers/)]);
    expect(warned()[0]).not.toMatch(/OldGreetTasks|RestTasks|elsewhere/);
    expect([LostTasks, OldGreetTasks, RestTasks]).toHaveLength(3);
  });

  it('on a module that is loaded later is found when it is loaded', async () => {
    @Injectable()
    class LateTasks {
      constructor(private readonly greeter: Greeter) {}

      @Task('late', { maxAttempts: 2 })
      run(name: string): string {
        return this.greeter.greet(name);
      }
    }
    @Module({ providers: [Greeter, LateTasks] })
    class LateModule {}
    const app = await apps.start(application({}));
    await app.get(LazyModuleLoader).load(() => LateModule);
    expect((await attempt(app, 'late', 'Ada')).result).toBe('hello Ada');
    expect(await app.get(JobManager).addJob('late', 'Bob')).toMatchObject({ maxAttempts: 2 });
  });

  it('on a module that is loaded later for a task that exists fails the load', async () => {
    @Injectable()
    class AgainTasks {
      @Task('greet')
      run(): void {}
    }
    @Module({ providers: [AgainTasks] })
    class AgainModule {}
    const app = await apps.start(application({ providers: [Greeter, GreetTasks] }));
    await expect(app.get(LazyModuleLoader).load(() => AgainModule)).rejects.toBeInstanceOf(DuplicateTaskError);
  });

  it('gives addJob its defaults', async () => {
    @Injectable()
    class Defaults {
      @Task('defaults', { queue: 'q', priority: 3, maxAttempts: 4, flags: ['slow'] })
      run(): void {}
    }
    const app = await apps.start(application({ providers: [Defaults] }));
    const job = await app.get(JobManager).addJob('defaults', {}, { delayMs: 60_000 });
    expect(job).toMatchObject({ queue: 'q', priority: 3, maxAttempts: 4, flags: ['slow'] });
  });

  it('for one name on two methods fails at start, and names both', async () => {
    @Injectable()
    class OtherTasks {
      @Task('greet')
      hello(): void {}
    }
    const failure = await apps.startFailure(application({ providers: [Greeter, GreetTasks, OtherTasks] }));
    expect(failure).toBeInstanceOf(DuplicateTaskError);
    expect(failure.message).toMatch(/GreetTasks\.greet in RootTestModule and OtherTasks\.hello in RootTestModule/);
  });

  it('on a class that two modules provide fails at start', async () => {
    class FirstModule {}
    class SecondModule {}
    const providers = [Greeter, GreetTasks];
    const failure = await apps.startFailure({
      imports: [
        JobsModule.forRoot({ connection: apps.database.url }),
        { module: FirstModule, providers },
        { module: SecondModule, providers },
      ],
    });
    expect(failure.message).toMatch(/GreetTasks\.greet in FirstModule and GreetTasks\.greet in SecondModule/);
  });

  it('with wrong options fails at start, naming every fault of every task', async () => {
    @Injectable()
    class Wrong {
      @Task('', { priority: 0.5 })
      nameless(): void {}

      @Task('typo', { maxAttempt: 3, retry: { jitter: 2, multiplyer: 3 } } as TaskOptions)
      typo(): void {}
    }
    const failure = (await apps.startFailure(application({ providers: [Wrong] }))) as InvalidOptionsError;
    expect(failure).toBeInstanceOf(InvalidOptionsError);
    const [first, second] = ['nameless', 'typo'].map((method) => `@Task on Wrong.${method} in RootTestModule`);
    expect(failure.problems).toEqual([
      `${first}: Expected the task's name to be a string of 1 to 1000 bytes of UTF-8 without NUL and lone surrogates, got "".`,
      `${first}: Expected priority to be an integer from -2147483648 to 2147483647, got 0.5.`,
      `${second}: Unknown option maxAttempt; did you mean maxAttempts?`,
      `${second}: Expected retry.jitter to be a number from 0 to 1, got 2.`,
      `${second}: Unknown option retry.multiplyer; did you mean multiplier?`,
    ]);
  });

  it('bound to an instance that does not exist fails at start', async () => {
    @Injectable()
    class Lost {
      @Task('lost', { instance: 'report' })
      run(): void {}
    }
    const failure = await apps.startFailure({
      imports: [
        JobsModule.forRoot({ connection: apps.database.url }),
        JobsModule.forRoot({ connection: apps.database.url, name: 'reports', schema: 'reports' }),
      ],
      providers: [Lost],
    });
    expect(failure.message).toMatch(
      /Lost\.run .*: Expected instance to be one of 'default', 'reports', got "report"; did you mean reports\?/,
    );
  });

  it.each<[string, string, () => unknown]>([
    [
      'an accessor',
      'the accessor Accessors.run',
      () => {
        class Accessors {
          get run(): () => void {
            throw new Error('must not be read');
          }
        }
        return Accessors;
      },
    ],
    [
      'a property',
      'the property Properties.run',
      () => {
        class Properties {
          run = (): void => undefined;
        }
        return Properties;
      },
    ],
  ])('on %s fails when the class is loaded, and so does @OnJobEvent', (_kind, named, define) => {
    const { prototype } = define() as { prototype: object };
    const descriptor = Object.getOwnPropertyDescriptor(prototype, 'run') as TypedPropertyDescriptor<() => void>;
    for (const decorate of [Task('x'), OnJobEvent('all')]) {
      expect(() => decorate(prototype, 'run', descriptor)).toThrow(InvalidOptionsError);
      expect(() => decorate(prototype, 'run', descriptor)).toThrow(`on a method of an instance, got ${named}.`);
    }
  });

  it('used as a standard decorator names the compiler option that it needs', () => {
    const decorate = Task('x') as unknown as (value: unknown, context: object) => void;
    expect(() => decorate(() => undefined, { kind: 'method', name: 'run' })).toThrow(/experimentalDecorators/);
  });

  it('on a static method fails when the class is loaded', () => {
    expect(() => {
      class Statics {
        @Task('static')
        static run(): void {}
      }
      return Statics;
    }).toThrow(/Expected @Task on a method of an instance, got the static Statics\.run/);
  });
});
