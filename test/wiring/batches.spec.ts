import {
  type CallHandler,
  type CanActivate,
  type ExecutionContext,
  Inject,
  Injectable,
  type NestInterceptor,
  Scope,
  UseGuards,
  UseInterceptors,
} from '@nestjs/common';
import { REQUEST } from '@nestjs/core';
import { afterAll, afterEach, beforeAll, describe, expect, it } from '@jest/globals';
import type { Observable } from 'rxjs';
import { BatchContext, type ClaimedJob, JobManager, JobsModule, Task } from '../../lib/index.js';
import { createJobsTesting } from '../../lib/testing.js';
import { applicationsOnOneDatabase, type Applications } from '../support/app.js';
import { eventually } from '../support/database.js';

const log: string[] = [];
const batch = { size: 3, waitMs: 60_000 };

@Injectable()
class Guard implements CanActivate {
  canActivate(context: ExecutionContext): boolean {
    const [jobs, ctx] = context.getArgs<[ClaimedJob[], BatchContext]>();
    log.push(`guard ${context.getType()} ${jobs.length} ${ctx instanceof BatchContext}`);
    return true;
  }
}

@Injectable()
class Passing implements NestInterceptor {
  intercept(context: ExecutionContext, next: CallHandler): Observable<unknown> {
    log.push(`interceptor ${context.getArgByIndex<ClaimedJob[]>(0).length}`);
    return next.handle();
  }
}

@Injectable()
class Tasks {
  @Task('guarded', { batch })
  @UseGuards(Guard)
  @UseInterceptors(Passing)
  guarded(jobs: ClaimedJob<number>[], ctx: BatchContext<number>): void {
    log.push(`handler ${jobs.length} ${ctx instanceof BatchContext}`);
  }
}

@Injectable({ scope: Scope.REQUEST })
class ScopedTasks {
  constructor(@Inject(REQUEST) private readonly request: ClaimedJob[]) {}

  @Task('scoped', { batch })
  run(jobs: ClaimedJob<number>[]): void {
    log.push(`scoped ${jobs.length} ${this.request === jobs}`);
  }
}

class Dto {}

@Injectable()
class WrongTasks {
  @Task('wrong', { batch: { size: 3 } } as any)
  run(_job: Dto): void {
    log.push('never');
  }
}

describe('a batch handler in Nest', () => {
  let apps: Applications;
  beforeAll(async () => {
    apps = await applicationsOnOneDatabase();
  });
  afterEach(() => {
    log.length = 0;
    return apps.close();
  });
  afterAll(() => apps.drop());

  const start = (...providers: any[]) =>
    apps.start({ imports: [JobsModule.forRoot({ connection: apps.database.url })], providers });

  it('is called once for many jobs, behind its guards and interceptors', async () => {
    const jobs = (await start(Tasks, Guard, Passing)).get(JobManager);
    await jobs.addJobs([1, 2, 3].map((payload) => ({ task: 'guarded', payload })));
    await eventually(async () => (await jobs.counts()).byStatus.completed === 3);
    expect(log).toEqual(['guard jobs 3 true', 'interceptor 3', 'handler 3 true']);
  });

  it('in request scope gets the jobs as its request', async () => {
    const jobs = (await start(ScopedTasks)).get(JobManager);
    await jobs.addJobs([1, 2, 3].map((payload) => ({ task: 'scoped', payload })));
    await eventually(() => log.length === 1);
    expect(log).toEqual(['scoped 3 true']);
  });

  it('must take an array', async () => {
    const failure = await apps.startFailure({
      imports: [JobsModule.forRoot({ connection: apps.database.url })],
      providers: [WrongTasks],
    });
    expect(failure.message).toContain('first parameter of a batch handler to be an array of jobs');
    expect(failure.message).toContain('got Dto');
  });

  it('runs in a drain with what is due', async () => {
    const jobs = (await start()).get(JobManager);
    const sizes: number[] = [];
    const tasks = {
      index: {
        batch: { size: 3, by: (n: number) => String(n % 2) },
        handler: (all: ClaimedJob[]) => void sizes.push(all.length),
      },
    };
    const testing = createJobsTesting({ jobs, tasks });
    await jobs.addJobs([0, 2, 4, 6, 1, 3].map((payload) => ({ task: 'index', payload })));
    expect(await testing.drain()).toHaveLength(6);
    expect(sizes.toSorted((a, b) => a - b)).toEqual([1, 2, 3]);
    await testing.close();
  });
});
