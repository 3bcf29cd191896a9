// Compiled, never run: what handlers of batches may look like, and what their context takes. 'typed-mail' is declared in
// payloads.ts.
import { Injectable } from '@nestjs/common';
import {
  type BatchContext,
  type BatchTaskOptions,
  type ClaimedJob,
  createWorkerPool,
  defineTask,
  type JobContext,
  type JobManager,
  type PlainTask,
  type StandardSchema,
  Task,
} from '../../lib/index.js';

class Mail {
  to!: string;
  copies?: number;
}

class Page {
  url!: string;
}

declare const jobs: JobManager;
declare const numeric: StandardSchema<number, string>;

type Equal<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
const holds = <T extends true>(): T => true as T;

const INDEX = defineTask<Page>('index');
const batch = { size: 10 };

@Injectable()
export class Handlers {
  // The payload's type comes from `TaskPayloads`, a schema or a token; a name that is not declared takes any.
  @Task('typed-mail', { batch })
  declared(_mails: ClaimedJob<Mail>[], _ctx: BatchContext<Mail>): void {}

  @Task('page', { batch, payload: Page })
  byClass(_pages: ClaimedJob<Page>[], _ctx: BatchContext<Page>): void {}

  @Task('number', { batch, payload: numeric })
  bySchema(_numbers: ClaimedJob<number>[]): void {}

  @Task(INDEX, { batch: { size: 10, waitMs: 5, by: (page) => page.url } })
  byToken(_pages: ClaimedJob<Page>[], _ctx: BatchContext<Page>): void {}

  @Task('undeclared', { batch: { size: 10, by: (page: Page) => page.url } })
  undeclared(_pages: ClaimedJob<Page>[], _ctx: BatchContext<Page>): void {}

  @Task('undeclared', { batch })
  ofNothing(): void {}

  // @ts-expect-error its payloads are mails
  @Task('typed-mail', { batch })
  wrongDeclared(_pages: ClaimedJob<Page>[]): void {}

  // @ts-expect-error the class says what its payloads are
  @Task('page', { batch, payload: Page })
  wrongClass(_mails: ClaimedJob<Mail>[]): void {}

  // @ts-expect-error the schema gives numbers
  @Task('number', { batch, payload: numeric })
  wrongSchema(_texts: ClaimedJob<string>[]): void {}

  // @ts-expect-error the token says what its payloads are
  @Task(INDEX, { batch })
  wrongToken(_mails: ClaimedJob<Mail>[]): void {}

  // @ts-expect-error it gets jobs, not payloads
  @Task('typed-mail', { batch })
  payloadsOnly(_mails: Mail[]): void {}

  // @ts-expect-error it gets jobs also of a task that is not declared
  @Task('undeclared', { batch })
  oneJob(_page: ClaimedJob<Page>): void {}

  // @ts-expect-error it gets the context of a batch
  @Task('undeclared', { batch })
  contextOfOne(_pages: ClaimedJob<Page>[], _ctx: JobContext<Page>): void {}

  // @ts-expect-error it gets the context of a batch of mails
  @Task('typed-mail', { batch })
  contextOfOthers(_mails: ClaimedJob<Mail>[], _ctx: BatchContext<Page>): void {}

  // @ts-expect-error without `batch` it gets one payload
  @Task('typed-mail')
  notABatch(_mails: ClaimedJob<Mail>[], _ctx: BatchContext<Mail>): void {}

  // @ts-expect-error the size is missing
  @Task('undeclared', { batch: {} })
  withoutSize(_pages: ClaimedJob<Page>[]): void {}

  // @ts-expect-error there is no such group
  @Task('undeclared', { batch: { size: 10, by: 'task' } })
  byTask(_pages: ClaimedJob<Page>[]): void {}

  // @ts-expect-error a group has a name
  @Task(INDEX, { batch: { size: 10, by: (page) => page.url.length } })
  byNumber(_pages: ClaimedJob<Page>[]): void {}
}

export async function decide(mails: ClaimedJob<Mail>[], ctx: BatchContext<Mail>): Promise<void> {
  const [mail] = mails as [ClaimedJob<Mail>];
  holds<Equal<typeof mail.payload, Mail>>();
  // Any job of the batch, or its id; an error may be anything, as what is thrown.
  ctx.fail(mail, new Error('refused'));
  ctx.fail({ id: mail.id }, 'refused');
  ctx.snooze(mail, 1_000);
  ctx.complete(mail);
  ctx.complete(mail, { sent: true });
  const one: JobContext<Mail> = ctx.for(mail);
  holds<Equal<ReturnType<typeof ctx.fail>, void>>();
  holds<Equal<ReturnType<typeof ctx.snooze>, void>>();
  holds<Equal<typeof ctx.signal, AbortSignal>>();
  await one.progress(50);

  // @ts-expect-error why does it fail?
  ctx.fail(mail);
  // @ts-expect-error an id alone is no job
  ctx.fail(mail.id, new Error('refused'));
  // @ts-expect-error one job at a time
  ctx.fail(mails, new Error('refused'));
  // @ts-expect-error until when?
  ctx.snooze(mail);
  // @ts-expect-error ms are a number
  ctx.snooze(mail, '1s');
  // @ts-expect-error ms, not a date
  ctx.snooze(mail, new Date());
  // @ts-expect-error a result is the job's
  ctx.complete();
  // @ts-expect-error there are steps of single jobs only
  await ctx.step('one', () => 1);
  // @ts-expect-error it is of many jobs
  ctx.job.id.toString();
}

export function outsideNest(): void {
  const handler = (pages: ClaimedJob<Page>[], ctx: BatchContext<Page>): void => ctx.fail(pages[0]!, 'refused');
  const task: PlainTask<Page> = { batch: { size: 10, by: (page) => page.url }, handler };
  createWorkerPool({ jobs, tasks: { task } });
  createWorkerPool({
    jobs,
    tasks: { 'typed-mail': { batch, handler: ([mail], ctx) => ctx.snooze(mail!, mail!.payload.to.length) } },
  });
  // @ts-expect-error its payloads are mails
  createWorkerPool({ jobs, tasks: { 'typed-mail': { batch, handler } } });
  // @ts-expect-error without `batch` it gets one payload
  const alone: PlainTask<Page> = { handler };
  // @ts-expect-error without `batch` it gets one payload
  const bare: PlainTask<Page> = handler;
  // @ts-expect-error a batch needs a handler
  const none: PlainTask<Page> = { batch };
  // @ts-expect-error it gets jobs
  const ofPayloads: PlainTask<Page> = { batch, handler: (pages: Page[]) => pages.length };
  // @ts-expect-error the size is a number
  const options: BatchTaskOptions = { batch: { size: '10' } };
  void [alone, bare, none, ofPayloads, options];
}
