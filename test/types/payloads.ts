// Compiled, never run: `tsc` fails if a line that must not compile does, or the other way round.
import { Controller, Injectable } from '@nestjs/common';
import {
  type AddedJob,
  createWorkerPool,
  type CronInfo,
  defineTask,
  type JobContext,
  type JobEvent,
  type JobManager,
  type JobSpec,
  OnJobEvent,
  type PlainTask,
  type StandardSchema,
  Task,
  type TaskToken,
} from '../../lib/index.js';
import type { DataSource, EntityManager } from '../../lib/interfaces/typeorm.interface.js';
import { createJobsTesting } from '../../lib/testing.js';

class Mail {
  to!: string;
  copies?: number;
}

class Invoice {
  amount!: number;
}

declare module '../../lib/index.js' {
  interface TaskPayloads {
    'typed-mail': Mail;
    'typed-count': { count: number };
  }
}

declare const jobs: JobManager;
declare const numeric: StandardSchema<number, string>;

type Equal<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
const holds = <T extends true>(): T => true as T;

export async function addJob(): Promise<void> {
  // A declared task takes its payload and nothing else.
  const added = await jobs.addJob('typed-mail', { to: 'a@b.cd' });
  holds<Equal<typeof added, AddedJob<Mail>>>();
  await jobs.addJob('typed-mail', { to: 'a@b.cd', copies: 2 }, { queue: 'mail' });
  // @ts-expect-error a number is no address
  await jobs.addJob('typed-mail', { to: 1 });
  // @ts-expect-error the address is missing
  await jobs.addJob('typed-mail', {});
  // @ts-expect-error the property is unknown
  await jobs.addJob('typed-count', { count: 1, more: 2 });

  // Others take anything, and so does a name that is known only at run time.
  await jobs.addJob('undeclared', { anything: true });
  await jobs.addJob('typed-mail' as string, 7);

  // @ts-expect-error options are checked as well
  await jobs.addJob('undeclared', {}, { priorty: 1 });
}

export async function scheduleCron(): Promise<void> {
  const cron = await jobs.scheduleCron({
    id: 'a',
    task: 'typed-mail',
    schedule: '* * * * *',
    payload: { to: 'a@b.cd' },
  });
  holds<Equal<typeof cron, CronInfo<Mail>>>();
  await jobs.scheduleCron({ id: 'b', task: 'undeclared', schedule: '* * * * *', payload: 7, overlap: 'queue' });
  await jobs.scheduleCron({ id: 'c', task: defineTask('d', Mail), schedule: '* * * * *', payload: { to: 'a@b.cd' } });
  // @ts-expect-error a number is no address
  await jobs.scheduleCron({ id: 'd', task: 'typed-mail', schedule: '* * * * *', payload: { to: 1 } });
  // @ts-expect-error each slot has its own time
  await jobs.scheduleCron({ id: 'e', task: 'x', schedule: '* * * * *', options: { runAt: new Date() } });
  // @ts-expect-error there is no such way
  await jobs.scheduleCron({ id: 'f', task: 'x', schedule: '* * * * *', overlap: 'often' });
}

export async function addJobs(): Promise<void> {
  await jobs.addJobs([
    { task: 'typed-mail', payload: { to: 'a@b.cd' } },
    { task: 'undeclared', payload: 1, queue: 'q' },
  ]);
  // @ts-expect-error a number is no address
  await jobs.addJobs([{ task: 'typed-mail', payload: { to: 1 } }]);
  await jobs.addJobs([
    { task: 'undeclared', payload: 1 },
    // @ts-expect-error the address is missing
    { task: 'typed-mail', payload: {} },
  ]);
  // @ts-expect-error there is no such option
  await jobs.addJobs([{ task: 'undeclared', payload: 1, quue: 'q' }]);
  await jobs.addJobs(['a@b.cd'].map((to) => ({ task: 'typed-mail' as const, payload: { to } })));
  // @ts-expect-error a number is no address
  await jobs.addJobs([1].map((to) => ({ task: 'typed-mail' as const, payload: { to } })));

  // Names that are known only at run time.
  const specs: JobSpec[] = [];
  await jobs.addJobs(specs);
  await jobs.addJobs([1].map((to) => ({ task: 'typed-mail', payload: { to } })));
}

export async function tokens(): Promise<void> {
  const mail = defineTask('mail', Mail);
  holds<Equal<typeof mail, TaskToken<Mail, Mail>>>();
  await jobs.addJob(mail, { to: 'a@b.cd' });
  // @ts-expect-error the address is missing
  await jobs.addJob(mail, {});

  // With a schema, addJob takes the input.
  const parsed = defineTask('parsed', numeric);
  holds<Equal<typeof parsed, TaskToken<string, number>>>();
  await jobs.addJob(parsed, '12');
  // @ts-expect-error the output is not the input
  await jobs.addJob(parsed, 12);

  const bare = defineTask<{ id: string }>('bare');
  await jobs.addJob(bare, { id: 'x' });
  // @ts-expect-error an id is no number
  await jobs.addJob(bare, { id: 1 });
  await jobs.addJob(defineTask('anything'), { whatever: true });
}

const invoice = defineTask('invoice', Invoice);
const parsed = defineTask('parsed', numeric);

@Injectable()
@Controller()
export class Handlers {
  @Task('typed-mail')
  declared(_mail: Mail, _ctx: JobContext<Mail>): void {}

  @Task('typed-mail')
  lessIsFine(_mail: { to: string }): void {}

  // @ts-expect-error the handler wants another payload than is declared
  @Task('typed-mail')
  wrong(_count: { count: number }): void {}

  // @ts-expect-error the context is that of another payload
  @Task('typed-mail')
  wrongContext(_mail: Mail, _ctx: JobContext<Invoice>): void {}

  @Task('typed-mail')
  anyContext(_mail: Mail, _ctx: JobContext): void {}

  @Task('undeclared', { maxAttempts: 3 })
  undeclared(_anything: Invoice, _ctx: JobContext<Invoice>): void {}

  @Task('undeclared-with-dto', { payload: Invoice })
  byOption(_invoice: Invoice): void {}

  // @ts-expect-error the handler wants another payload than its option says
  @Task('undeclared-with-dto', { payload: Invoice })
  wrongOption(_mail: Mail): void {}

  @Task(invoice)
  byToken(_invoice: Invoice): number {
    return 1;
  }

  // @ts-expect-error the handler wants another payload than the token's
  @Task(invoice)
  wrongToken(_mail: Mail): void {}

  @Task(parsed)
  getsTheOutput(_value: number): void {}

  // @ts-expect-error the input is not the output
  @Task(parsed)
  wantsTheInput(_value: string): void {}

  @Task('recurring', { cron: '0 3 * * *' })
  recurring(): void {}

  // @ts-expect-error a crontab has a schedule
  @Task('unscheduled', { cron: { timeZone: 'UTC' } })
  unscheduled(): void {}

  @Task('no-parameters')
  async none(): Promise<string> {
    return 'x';
  }

  // @ts-expect-error there is no such option
  @Task('unknown-option', { maxAttempt: 3 })
  unknownOption(): void {}

  // @ts-expect-error only methods handle tasks
  @Task('property')
  readonly property = 1;

  @OnJobEvent('job.exhausted')
  onExhausted(_event: JobEvent<'job.exhausted'>): void {}

  @OnJobEvent('all')
  async onAnything(_event: JobEvent): Promise<void> {}

  // @ts-expect-error another event than the decorator's
  @OnJobEvent('job.exhausted')
  onOther(_event: JobEvent<'pool.start'>): void {}

  // @ts-expect-error there is no such event
  @OnJobEvent('job.exhaustd')
  onUnknown(): void {}
}

createWorkerPool({
  jobs,
  tasks: {
    plain: async (payload: Mail, ctx: JobContext<Mail>) => [payload.to, ctx.attempt],
    withOptions: { handler: () => undefined, maxAttempts: 3, payload: Mail },
  },
});
createWorkerPool({
  jobs,
  tasks: {
    'typed-mail': (mail, ctx) => {
      holds<Equal<typeof mail, Mail>>();
      holds<Equal<typeof ctx, JobContext<Mail>>>();
    },
    'typed-count': { handler: ({ count }) => count.toFixed(), maxAttempts: 2 },
    undeclared: (anything) => anything.whatever as unknown,
  },
});
// @ts-expect-error the handler wants another payload than is declared
createWorkerPool({ jobs, tasks: { 'typed-mail': (_count: { count: number }) => undefined } });
// @ts-expect-error so does this one
createWorkerPool({ jobs, tasks: { 'typed-mail': { handler: (_count: { count: number }) => undefined } } });
// @ts-expect-error the context is that of another payload
createWorkerPool({ jobs, tasks: { 'typed-mail': (_mail: Mail, _ctx: JobContext<Invoice>) => undefined } });
createJobsTesting({ jobs, tasks: { 'typed-mail': (mail) => mail.to } });
// @ts-expect-error the handler wants another payload than is declared
createJobsTesting({ jobs, tasks: { 'typed-mail': (_count: { count: number }) => undefined } });
declare const named: Record<string, PlainTask>;
createWorkerPool({ jobs, tasks: named });

export async function steps(ctx: JobContext): Promise<void> {
  const order = await ctx.step('order', () => ({
    id: 7,
    at: new Date(),
    to: new URL('http://h/'),
    lines: [{ sku: 'a', since: new Date() }],
    note: undefined as string | undefined,
    total: () => 5,
  }));
  // What JSON brings back of it.
  holds<Equal<typeof order.at, string>>();
  holds<Equal<typeof order.to, string>>();
  holds<Equal<(typeof order.lines)[0], { sku: string; since: string }>>();
  holds<Equal<typeof order.note, string | undefined>>();
  // @ts-expect-error JSON knows no functions
  order.total();
  // @ts-expect-error a Date comes back as text
  order.at.getTime();
  const charge: { id: string } | null = await ctx.step('charge', async () => ({ id: 'c' }) as { id: string } | null);
  const nothing: void = await ctx.step('nothing', () => undefined);
  const anything = await ctx.step('any', () => JSON.parse('1'));
  holds<Equal<typeof anything, any>>();
  const tuple = await ctx.step('tuple', () => [1, new Date()] as [number, Date]);
  holds<Equal<typeof tuple, [number, string]>>();
  void [charge, nothing];
}

// @ts-expect-error instances belong to the Nest module
createWorkerPool({ jobs, tasks: { a: { handler: () => undefined, instance: 'x' } } });

// TypeORM's types are any only where the package is missing; here nothing may hide that they are not found.
// @ts-expect-error no DataSource
export const noDataSource: DataSource = 'none';
// @ts-expect-error no EntityManager
export const noManager: EntityManager = 'none';
