import { Controller, Injectable, type ModuleMetadata, Scope } from '@nestjs/common';
import { afterAll, afterEach, beforeAll, describe, expect, it } from '@jest/globals';
import {
  createCollectingEvents,
  InvalidOptionsError,
  JobEvents,
  type JobEvent,
  JobManager,
  JobsModule,
  OnJobEvent,
  PermanentFailure,
  Task,
} from '../../lib/index.js';
import { JobLogger } from '../../lib/monitoring/job.logger.js';
import { applicationsOnOneDatabase, attempt, CollectingLogger, type Applications } from '../support/app.js';
import { eventually } from '../support/database.js';

const SECRET = 'a secret of the customer';

@Injectable()
class FailingTasks {
  @Task('failing', { retry: () => 1 })
  failing(): never {
    throw new Error('broken');
  }

  @Task('hopeless')
  hopeless(): never {
    throw new PermanentFailure('no hope');
  }

  @Task('fine')
  fine(): void {}
}

describe('@OnJobEvent', () => {
  let apps: Applications;
  const application = (metadata: ModuleMetadata): ModuleMetadata => ({
    imports: [JobsModule.forRoot({ connection: apps.database.url })],
    ...metadata,
    providers: [FailingTasks, ...(metadata.providers ?? [])],
  });

  beforeAll(async () => {
    apps = await applicationsOnOneDatabase();
  });
  afterEach(() => apps.close());
  afterAll(() => apps.drop());

  it('calls methods of providers and controllers with the events of a type, or all', async () => {
    const seen: string[] = [];
    @Injectable()
    class Alerts {
      private readonly prefix = 'alert';

      @OnJobEvent('job.exhausted')
      raise({ job, error }: JobEvent<'job.exhausted'>): void {
        seen.push(`${this.prefix} ${job.task} ${(error as Error).message}`);
      }
    }
    @Controller()
    class AllEvents {
      @OnJobEvent('all')
      note({ type }: JobEvent): void {
        seen.push(type);
      }
    }
    const app = await apps.start(application({ providers: [Alerts], controllers: [AllEvents] }));
    await attempt(app, 'hopeless');
    expect(seen).toEqual([
      'pool.start',
      'job.started',
      'job.failed',
      'alert hopeless no hope',
      'job.exhausted',
      'job.settled',
    ]);
  });

  it('may throw or reject: it is logged and counted, and the job does not notice', async () => {
    @Injectable()
    class Clumsy {
      @OnJobEvent('job.completed')
      throws(): void {
        throw new Error('thrown');
      }

      @OnJobEvent('job.completed')
      async rejects(): Promise<void> {
        throw new Error('rejected');
      }
    }
    const app = await apps.start(application({ providers: [Clumsy] }));
    expect((await attempt(app, 'fine')).status).toBe('completed');
    await eventually(() => app.get(JobEvents).stats().dropped === 2);
    expect(apps.logger.of('error')).toEqual([
      '@OnJobEvent on Clumsy.throws in RootTestModule failed on the event job.completed: thrown',
      '@OnJobEvent on Clumsy.rejects in RootTestModule failed on the event job.completed: rejected',
    ]);
    app.get(JobEvents).on('job.completed', () => {
      throw new Error('by hand');
    });
    await attempt(app, 'fine');
    expect(apps.logger.of('error').at(-1)).toBe('A subscriber failed on the event job.completed: by hand');
  });

  it('hears the instance that it names', async () => {
    const seen: string[] = [];
    @Injectable()
    class Reports {
      @OnJobEvent('pool.start', { instance: 'reports' })
      started({ concurrency }: JobEvent<'pool.start'>): void {
        seen.push(`reports ${concurrency}`);
      }
    }
    const connection = apps.database.url;
    const reports = JobsModule.forRoot({ connection, name: 'reports', schema: 'reports', worker: { concurrency: 3 } });
    await apps.start({ imports: [JobsModule.forRoot({ connection }), reports], providers: [Reports] });
    expect(seen).toEqual(['reports 3']);
  });

  it('for unknown types, unknown instances and request scope fails at start', async () => {
    @Injectable()
    class Unknown {
      @OnJobEvent('job.exhaustd' as 'job.exhausted')
      type(): void {}

      @OnJobEvent('job.failed', { instance: 'nobody' })
      instance(): void {}
    }
    const failure = (await apps.startFailure(application({ providers: [Unknown] }))) as InvalidOptionsError;
    expect(failure.problems).toEqual([
      expect.stringMatching(
        /^@OnJobEvent on Unknown\.type in RootTestModule: .* got "job\.exhaustd"; did you mean job\.exhausted\?$/,
      ),
      '@OnJobEvent on Unknown.instance in RootTestModule: Expected instance to be one of \'default\', got "nobody".',
    ]);
    @Injectable({ scope: Scope.REQUEST })
    class Scoped {
      @OnJobEvent('job.failed')
      failed(): void {}
    }
    const second = await apps.startFailure(application({ providers: [Scoped] }));
    expect(second.message).toMatch(
      /Scoped\.failed .*: Expected a singleton, got a provider in request or transient scope/,
    );
  });

  describe('the log', () => {
    it('warns of each failed attempt and of exhausted jobs, once each, and never shows a payload', async () => {
      const app = await apps.start(application({}));
      const { id } = await app.get(JobManager).addJob('failing', { card: SECRET }, { maxAttempts: 2 });
      await eventually(() => apps.logger.of('warn').length === 2);
      expect(apps.logger.of('warn')).toEqual([
        expect.stringMatching(/failed in attempt 1 of 2 and runs again at 2.*: broken/),
        `Job ${id} of task "failing" is exhausted after 2 of 2 attempts: broken`,
      ]);
      expect(JSON.stringify(apps.logger.lines)).not.toContain(SECRET);
      await apps.close();
    });

    it('hides the passwords of URLs, and repeats an error that keeps coming once a minute', () => {
      const sink = new CollectingLogger();
      const events = createCollectingEvents();
      new JobLogger(sink).subscribe(events);
      const error = new Error('cannot connect to postgres://ada:hunter2@db:5432/app');
      for (let i = 0; i < 3; i++) events.emit('worker.error', null, { error, context: 'claiming jobs' });
      events.emit('worker.error', null, { error, context: 'renewing the lease' });
      expect(sink.lines.map(({ message }) => message)).toEqual([
        'Worker error (claiming jobs): cannot connect to postgres://***@db:5432/app',
        'Worker error (renewing the lease): cannot connect to postgres://***@db:5432/app',
      ]);
      expect(JSON.stringify(sink.lines)).not.toContain('hunter2');
    });

    it('survives whatever was thrown', () => {
      const sink = new CollectingLogger();
      const events = createCollectingEvents();
      new JobLogger(sink).subscribe(events);
      const hostile = {
        toString: () => {
          throw new Error('no');
        },
      };
      for (const error of [undefined, null, 'text', 7, hostile, Object.create(null)])
        events.emit('worker.error', null, { error, context: 'x' });
      expect(sink.lines).toHaveLength(5);
      expect(events.stats().dropped).toBe(0);
    });
  });
});
