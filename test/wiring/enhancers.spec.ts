import {
  type ArgumentsHost,
  BadRequestException,
  type CallHandler,
  type CanActivate,
  Catch,
  Controller,
  createParamDecorator,
  type ExceptionFilter,
  type ExecutionContext,
  Inject,
  Injectable,
  type ModuleMetadata,
  type NestInterceptor,
  ParseIntPipe,
  type PipeTransform,
  Scope,
  SetMetadata,
  UseFilters,
  UseGuards,
  UseInterceptors,
  UsePipes,
  ValidationPipe,
} from '@nestjs/common';
import { APP_FILTER, APP_GUARD, APP_INTERCEPTOR, APP_PIPE, Reflector, REQUEST } from '@nestjs/core';
import { afterAll, afterEach, beforeAll, describe, expect, it, jest } from '@jest/globals';
import { IsString } from 'class-validator';
import { map } from 'rxjs';
import {
  InvalidOptionsError,
  type Job,
  type JobContext,
  JobManager,
  JobsModule,
  PermanentFailure,
  snooze,
  Task,
} from '../../lib/index.js';
import { applicationsOnOneDatabase, attempt, type Applications } from '../support/app.js';

@Injectable()
class Prefix {
  readonly text = 'seen:';
}

@Injectable()
class Prefixing implements NestInterceptor {
  constructor(private readonly prefix: Prefix) {}

  intercept(_context: ExecutionContext, next: CallHandler) {
    return next.handle().pipe(map((value: unknown) => `${this.prefix.text}${String(value)}`));
  }
}

const looked: unknown[] = [];

@Injectable()
class Looking implements CanActivate {
  constructor(private readonly reflector: Reflector) {}

  canActivate(context: ExecutionContext): boolean {
    const [payload, ctx] = context.getArgs<[unknown, JobContext]>();
    const role = this.reflector.get<string>('role', context.getHandler());
    looked.push({ type: context.getType<string>(), payload, task: ctx.job.task, role, class: context.getClass().name });
    return true;
  }
}

@Injectable()
class Denying implements CanActivate {
  canActivate(): boolean {
    return false;
  }
}

@Injectable()
class Doubling implements PipeTransform {
  transform(value: number): number {
    return value * 2;
  }
}

@Catch()
class Reporting implements ExceptionFilter {
  static readonly seen: string[] = [];

  catch(error: Error, host: ArgumentsHost): void {
    Reporting.seen.push(
      `${host.getType<string>()} ${host.getArgs<[unknown, JobContext]>()[1].job.task} ${error.message}`,
    );
  }
}

@Catch()
class ReportingLater implements ExceptionFilter {
  async catch(): Promise<void> {}
}

@Catch(BadRequestException)
class Giving implements ExceptionFilter {
  catch(error: BadRequestException): never {
    throw new PermanentFailure('not worth another try', { cause: error });
  }
}

@Catch()
class Answering implements ExceptionFilter {
  catch(error: Error): string {
    return `answered ${error.message}`;
  }
}

@Catch()
class PuttingOff implements ExceptionFilter {
  catch(): unknown {
    return snooze(60_000);
  }
}

const TaskName = createParamDecorator((_data: unknown, context: ExecutionContext) => {
  return context.getArgs<[unknown, JobContext]>()[1].job.task;
});

class Greeting {
  @IsString()
  name!: string;
}

@Injectable()
class Tasks {
  @Task('intercepted')
  @UseInterceptors(Prefixing)
  intercepted(payload: string): string {
    return payload;
  }

  @Task('guarded')
  @SetMetadata('role', 'clerk')
  @UseGuards(Looking)
  guarded(payload: { a: number }): number {
    return payload.a;
  }

  @Task('denied')
  @UseGuards(Denying)
  denied(): string {
    return 'not reached';
  }

  @Task('doubled')
  @UsePipes(Doubling)
  doubled(payload: number, ctx: JobContext<number>): unknown {
    return [payload, ctx.job.payload, ctx.attempt];
  }

  @Task('parsed')
  @UsePipes(ParseIntPipe)
  parsed(payload: number): unknown {
    return payload + 1;
  }

  @Task('reported')
  @UseFilters(Reporting)
  reported(): never {
    throw new Error('broken');
  }

  @Task('reported-later')
  @UseFilters(ReportingLater)
  reportedLater(): never {
    throw new Error('broken later');
  }

  @Task('given-up')
  @UseFilters(Giving)
  givenUp(payload: { bad: boolean }): never {
    throw payload.bad ? new BadRequestException('bad request') : new Error('something else');
  }

  @Task('answered')
  @UseFilters(Answering)
  answered(): never {
    throw new Error('me');
  }

  @Task('put-off')
  @UseFilters(PuttingOff)
  putOff(): never {
    throw new Error('later');
  }

  @Task('decorated')
  decorated(@TaskName() name: string, payload: { a: number }, ctx: JobContext): unknown {
    return [name, payload, ctx.attempt];
  }

  @Task('plain')
  plain(payload: unknown): unknown {
    return payload;
  }

  @Task('validated', { payload: undefined })
  @UsePipes(new ValidationPipe({ whitelist: true, transform: true }))
  validated(greeting: Greeting): unknown {
    return { ...(greeting as object), dto: greeting instanceof Greeting };
  }
}

@Injectable()
@UseInterceptors(Prefixing)
@UseGuards(Looking)
class ClassTasks {
  @Task('class')
  run(payload: string): string {
    return payload;
  }
}

@Injectable()
@UseInterceptors(Prefixing)
class TokenTasks {
  @Task('token')
  run(payload: string): string {
    return payload;
  }
}

@Controller()
@UseInterceptors(Prefixing)
class TaskController {
  @Task('controller')
  run(payload: string): string {
    return payload;
  }
}

@Injectable({ scope: Scope.REQUEST })
class ScopedPrefix {
  constructor(@Inject(REQUEST) private readonly job: Job) {}

  get text(): string {
    return `${this.job.task}:`;
  }
}

@Injectable({ scope: Scope.REQUEST })
class ScopedPrefixing implements NestInterceptor {
  constructor(private readonly prefix: ScopedPrefix) {}

  intercept(_context: ExecutionContext, next: CallHandler) {
    return next.handle().pipe(map((value: unknown) => `${this.prefix.text}${String(value)}`));
  }
}

@Injectable()
class ScopedByInterceptor {
  @Task('scoped-interceptor')
  @UseInterceptors(ScopedPrefixing)
  run(payload: string): string {
    return payload;
  }
}

@Injectable({ scope: Scope.REQUEST })
class ScopedTasks {
  constructor(@Inject(REQUEST) private readonly job: Job) {}

  @Task('scoped')
  @UseInterceptors(Prefixing)
  @UseGuards(Looking)
  run(payload: string): string {
    return `${this.job.id.length} ${payload}`;
  }
}

@Injectable({ scope: Scope.TRANSIENT })
class TransientPrefixing implements NestInterceptor {
  private readonly text = 'transient:';

  intercept(_context: ExecutionContext, next: CallHandler) {
    return next.handle().pipe(map((value: unknown) => `${this.text}${String(value)}`));
  }
}

@Injectable()
class WithTransient {
  @Task('transient-interceptor')
  @UseInterceptors(TransientPrefixing)
  run(payload: string): string {
    return payload;
  }
}

describe('enhancers of a handler', () => {
  let apps: Applications;

  beforeAll(async () => {
    apps = await applicationsOnOneDatabase();
  });
  afterEach(async () => {
    await apps.close();
    looked.length = 0;
    Reporting.seen.length = 0;
  });
  afterAll(() => apps.drop());

  const start = (metadata: ModuleMetadata = {}, globalEnhancers = false) =>
    apps.start({
      imports: [
        JobsModule.forRoot({ connection: apps.database.url, globalEnhancers, worker: { pollIntervalMs: 100 } }),
      ],
      controllers: [TaskController],
      ...metadata,
      providers: [
        Prefix,
        Tasks,
        ClassTasks,
        ScopedByInterceptor,
        ScopedPrefix,
        ScopedTasks,
        WithTransient,
        ...(metadata.providers ?? []),
      ],
    });

  it('intercept its result, with their own dependencies', async () => {
    const app = await start();
    expect((await attempt(app, 'intercepted', 'x')).result).toBe('seen:x');
  });

  it('guard it, knowing the job by a context of type "jobs"', async () => {
    const app = await start();
    expect((await attempt(app, 'guarded', { a: 7 })).result).toBe(7);
    expect(looked).toEqual([{ type: 'jobs', payload: { a: 7 }, task: 'guarded', role: 'clerk', class: 'Tasks' }]);
  });

  it('fail the attempt where a guard denies it', async () => {
    const app = await start();
    expect(await attempt(app, 'denied')).toMatchObject({ status: 'failed', errorMessage: 'Forbidden resource' });
  });

  it('transform the payload by pipes, and leave the context alone', async () => {
    const app = await start();
    expect((await attempt(app, 'doubled', 21)).result).toEqual([42, 21, 1]);
    expect((await attempt(app, 'parsed', '41')).result).toBe(42);
    expect(await attempt(app, 'parsed', 'x')).toMatchObject({ status: 'failed' });
  });

  it('let a ValidationPipe see the payload’s class', async () => {
    const app = await start();
    expect((await attempt(app, 'validated', { name: 'Ada', more: 1 })).result).toEqual({ name: 'Ada', dto: true });
  });

  it('leave the error as it was where a filter only reports it, at once or later', async () => {
    const app = await start();
    expect(await attempt(app, 'reported')).toMatchObject({ status: 'failed', errorMessage: 'broken' });
    expect(Reporting.seen).toEqual(['jobs reported broken']);
    expect(await attempt(app, 'reported-later')).toMatchObject({ status: 'failed', errorMessage: 'broken later' });
  });

  it('fail with what a filter throws, where it catches that type', async () => {
    const app = await start();
    expect(await attempt(app, 'given-up', { bad: true })).toMatchObject({ errorMessage: 'not worth another try' });
    expect(await attempt(app, 'given-up', { bad: false })).toMatchObject({ errorMessage: 'something else' });
    expect(apps.logger.of('error', 'ExceptionsHandler')).toEqual([]);
  });

  it('end as a filter answers', async () => {
    const app = await start();
    expect(await attempt(app, 'answered')).toMatchObject({ status: 'completed', result: 'answered me' });
    expect(await attempt(app, 'put-off')).toMatchObject({ status: 'snoozed' });
  });

  it('of the class apply as well, on providers and controllers', async () => {
    const app = await start();
    expect((await attempt(app, 'class', 'x')).result).toBe('seen:x');
    expect(looked).toHaveLength(1);
    expect((await attempt(app, 'controller', 'x')).result).toBe('seen:x');
  });

  it('work with parameter decorators; the other parameters are the payload and the context', async () => {
    const app = await start();
    expect((await attempt(app, 'decorated', { a: 1 })).result).toEqual(['decorated', { a: 1 }, 1]);
  });

  it('in request scope are made for each job, which they can inject', async () => {
    const app = await start();
    expect((await attempt(app, 'scoped-interceptor', 'x')).result).toBe('scoped-interceptor:x');
    expect((await attempt(app, 'scoped', 'x')).result).toBe('seen:36 x');
    expect(looked).toHaveLength(1);
  });

  it('in transient scope have their own state', async () => {
    const app = await start();
    expect((await attempt(app, 'transient-interceptor', 'x')).result).toBe('transient:x');
  });

  it('apply to spies that were set after the start', async () => {
    const app = await start();
    jest.spyOn(app.get(Tasks), 'intercepted').mockReturnValue('spied');
    jest.spyOn(app.get(Tasks), 'plain').mockReturnValue('spied too');
    expect((await attempt(app, 'intercepted', 'x')).result).toBe('seen:spied');
    expect((await attempt(app, 'plain', 'x')).result).toBe('spied too');
  });

  it('apply to a class that is provided under a token', async () => {
    const app = await start({ providers: [{ provide: 'TOKEN', useClass: TokenTasks }] });
    expect((await attempt(app, 'token', 'x')).result).toBe('seen:x');
  });

  it.each([
    ['useFactory', { provide: 'TOKEN', useFactory: () => new TokenTasks() }],
    ['useValue', { provide: 'TOKEN', useValue: new TokenTasks() }],
  ])('that Nest would skip keep the application from starting: %s', async (_kind, provider) => {
    const failure = await apps.startFailure({
      imports: [JobsModule.forRoot({ connection: apps.database.url })],
      providers: [Prefix, Prefixing, provider],
    });
    expect(failure).toBeInstanceOf(InvalidOptionsError);
    expect(failure.message).toMatch(/TokenTasks\.run .*: Nest does not apply Prefixing/);
  });

  it('that are instances apply to values and what factories made', async () => {
    @Injectable()
    @UseInterceptors(new Prefixing(new Prefix()))
    class Made {
      @Task('made')
      run(payload: string): string {
        return payload;
      }
    }
    const app = await start({ providers: [{ provide: 'TOKEN', useFactory: async () => new Made() }] });
    expect((await attempt(app, 'made', 'x')).result).toBe('seen:x');
  });

  describe('that are global', () => {
    @Catch()
    class GlobalFilter implements ExceptionFilter {
      catch(error: Error): string {
        return `globally answered ${error.message}`;
      }
    }
    const providers = [
      { provide: APP_INTERCEPTOR, useClass: Prefixing },
      { provide: APP_PIPE, useClass: Doubling },
      { provide: APP_FILTER, useClass: GlobalFilter },
    ];

    it('do not run on jobs', async () => {
      const app = await start({ providers: [...providers, { provide: APP_GUARD, useClass: Denying }] });
      expect((await attempt(app, 'plain', 21)).result).toBe(21);
      expect((await attempt(app, 'doubled', 21)).result).toEqual([42, 21, 1]);
      expect((await attempt(app, 'reported')).errorMessage).toBe('broken');
    });

    it('run on jobs if the module is told so', async () => {
      const app = await start({ providers }, true);
      expect((await attempt(app, 'plain', 21)).result).toBe('seen:42');
      expect((await attempt(app, 'answered')).result).toBe('answered me');
      expect((await attempt(app, 'scoped', 4)).result).toBe('seen:seen:36 8');
    });

    it('that answer a response fail on jobs: the reason of the handler and its kind stand', async () => {
      @Catch()
      class HttpFilter implements ExceptionFilter {
        catch(error: Error, host: ArgumentsHost): unknown {
          const response = host.switchToHttp().getResponse<{ status(code: number): { json(body: unknown): void } }>();
          return response.status(500).json({ message: error.message });
        }
      }
      @Injectable()
      class Hopeless {
        @Task('hopeless', { maxAttempts: 3 })
        run(): never {
          throw new PermanentFailure('no such customer');
        }
      }
      const app = await start({ providers: [{ provide: APP_FILTER, useClass: HttpFilter }, Hopeless] }, true);
      const record = await attempt(app, 'hopeless');
      expect(record.errorMessage).toBe('no such customer');
      expect(await app.get(JobManager).findJob(record.jobId)).toMatchObject({ status: 'exhausted' });
      expect(apps.logger.of('error')).toEqual([
        expect.stringMatching(/The global filter HttpFilter failed on a job: .*status is not a function/),
      ]);
    });

    it('may make another error of it, which has the first as its cause', async () => {
      @Catch()
      class Translating implements ExceptionFilter {
        catch(error: Error): never {
          throw new Error(`translated ${error.message}`, { cause: error });
        }
      }
      @Injectable()
      class Breaking {
        @Task('breaking')
        run(): never {
          throw new Error('broken');
        }
      }
      const app = await start({ providers: [{ provide: APP_FILTER, useClass: Translating }, Breaking] }, true);
      expect((await attempt(app, 'breaking')).errorMessage).toBe('translated broken');
    });

    it('guard jobs if the module is told so', async () => {
      const app = await start({ providers: [{ provide: APP_GUARD, useClass: Denying }] }, true);
      expect((await attempt(app, 'plain', 21)).errorMessage).toBe('Forbidden resource');
    });

    it('in transient scope guard jobs, too, if the module is told so', async () => {
      @Injectable({ scope: Scope.TRANSIENT })
      class TransientGuard implements CanActivate {
        private readonly refused = 'denied';

        canActivate(context: ExecutionContext): boolean {
          return context.getArgByIndex(0) !== this.refused;
        }
      }
      const app = await start({ providers: [{ provide: APP_GUARD, useClass: TransientGuard }] }, true);
      expect((await attempt(app, 'plain', 'allowed')).result).toBe('allowed');
      expect((await attempt(app, 'plain', 'denied')).errorMessage).toBe('Forbidden resource');
      expect((await attempt(app, 'scoped', 'denied')).errorMessage).toBe('Forbidden resource');
    });

    it('in request scope guard jobs, too, if the module is told so', async () => {
      @Injectable({ scope: Scope.REQUEST })
      class ScopedGuard implements CanActivate {
        constructor(@Inject(REQUEST) private readonly job: Job) {}

        canActivate(): boolean {
          return this.job.payload !== 'denied';
        }
      }
      const app = await start({ providers: [{ provide: APP_GUARD, useClass: ScopedGuard }] }, true);
      expect((await attempt(app, 'plain', 'allowed')).result).toBe('allowed');
      expect((await attempt(app, 'plain', 'denied')).errorMessage).toBe('Forbidden resource');
      expect((await attempt(app, 'scoped', 'denied')).errorMessage).toBe('Forbidden resource');
    });
  });
});
