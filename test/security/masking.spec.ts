import { inspect } from 'node:util';
import { Injectable } from '@nestjs/common';
import { afterAll, afterEach, beforeAll, describe, expect, it } from '@jest/globals';
import fc from 'fast-check';
import {
  CancelJob,
  createCollectingEvents,
  createWorkerPool,
  InvalidOptionsError,
  type JobContext,
  JobEvents,
  JobManager,
  JobsModule,
  type Mask,
  partialSuccess,
  PermanentFailure,
  Task,
} from '../../lib/index.js';
import { JobMask, MASKED } from '../../lib/monitoring/job.mask.js';
import { applicationsOnOneDatabase, attempt, type Applications } from '../support/app.js';
import { eventually } from '../support/database.js';

const PASSWORD = 'correct horse "battery"';
const CARD = '4111 1111 1111 1111';
const PIN = 271_828;
const payload = {
  user: 'ada',
  password: PASSWORD,
  card: { number: CARD, holder: 'Ada' },
  accounts: [{ password: PASSWORD, pin: PIN }, { name: 'x' }],
};

const seen: unknown[] = [];

class GatewayError extends Error {
  constructor(
    message: string,
    readonly request: unknown,
  ) {
    super(message, { cause: new Error(`inner ${message}`) });
  }
}

@Injectable()
class Tasks {
  @Task('fails', { mask: ['card.number', 'pin'] })
  fails(given: typeof payload): void {
    seen.push(given);
    const request = { body: JSON.stringify(given), headers: new Map([['authorization', PASSWORD]]), tries: 1 };
    throw new GatewayError(`refused ${JSON.stringify(given)} for ${PASSWORD} and ${PIN}`, request);
  }

  @Task('answers', { mask: (value: Record<string, unknown>) => ({ ...value, card: undefined }) })
  answers(given: typeof payload): unknown {
    seen.push(given);
    return { password: given.password, card: given.card, ok: true };
  }

  @Task('half')
  half(given: typeof payload): unknown {
    return partialSuccess({ results: { password: given.password }, completedSteps: ['one'] });
  }

  @Task('cancels')
  cancels(given: typeof payload): void {
    throw new CancelJob(`no ${given.password}`);
  }

  @Task('throws-a-text')
  throwsText(given: typeof payload): void {
    // oxlint-disable-next-line no-throw-literal, typescript/only-throw-error -- users do
    throw `text ${given.password}`;
  }

  @Task('breaks', {
    mask: () => {
      throw new Error('a bug of the mask');
    },
  })
  breaks(): void {
    throw new PermanentFailure(`never mind ${CARD}`);
  }

  @Task('progress')
  async reports(given: typeof payload, ctx: JobContext): Promise<void> {
    await ctx.progress({ password: given.password });
    if (ctx.attempt === 1) throw new Error(given.password);
  }
}

describe('what is masked', () => {
  let apps: Applications;
  beforeAll(async () => {
    apps = await applicationsOnOneDatabase();
  });
  afterEach(async () => {
    await apps.close();
    seen.length = 0;
  });
  afterAll(() => apps.drop());

  const start = () =>
    apps.start({
      imports: [JobsModule.forRoot({ connection: apps.database.url, mask: ['password'] })],
      providers: [Tasks],
    });
  const shownBy = (events: JobEvents): string =>
    inspect(events.events(), { depth: 20, showHidden: true, maxStringLength: null }) +
    JSON.stringify(events.events()) +
    apps.logger.lines.map(({ level, message }) => `${level} ${message}`).join('\n');

  it.each([
    ['fails', [CARD, String(PIN)]],
    ['answers', [CARD]],
    ['half', []],
    ['cancels', []],
    ['throws-a-text', []],
    ['progress', []],
  ])('is in no event and no line of the log, whatever the handler does with it: %s', async (task, others) => {
    const app = await start();
    await attempt(app, task, payload);
    const shown = shownBy(app.get(JobEvents));
    expect(shown).toContain(MASKED);
    expect(shown).toContain('ada');
    for (const secret of ['correct horse', ...others]) expect(shown).not.toContain(secret);
  });

  it('reaches the handler, the history and waiting calls', async () => {
    const app = await start();
    const { id } = await app.get(JobManager).addJob('answers', payload);
    const { result, job } = await app.get(JobManager).waitForJob(id, { timeoutMs: 10_000 });
    expect(seen).toEqual([payload]);
    expect(result).toEqual({ password: PASSWORD, card: payload.card, ok: true });
    expect(job.payload).toEqual(payload);
  });

  it('leaves the rest as it was', async () => {
    const app = await start();
    await attempt(app, 'answers', payload);
    const events = app.get(JobEvents).events();
    const completed = events.find((event) => event.type === 'job.completed') as unknown as Record<string, unknown>;
    expect(completed.result).toEqual({ password: MASKED, ok: true });
    expect((completed.job as { payload: unknown }).payload).toEqual({
      user: 'ada',
      password: MASKED,
      card: undefined,
      accounts: [{ password: MASKED, pin: PIN }, { name: 'x' }],
    });
  });

  it('keeps an error’s class, and masks what it carries along', async () => {
    const app = await start();
    await attempt(app, 'fails', payload);
    const failed = app
      .get(JobEvents)
      .events()
      .find((event) => event.type === 'job.failed') as unknown as { error: GatewayError };
    expect(failed.error).toBeInstanceOf(GatewayError);
    expect(failed.error.message).toContain('refused {"user":"ada"');
    expect(failed.error.request).toMatchObject({ tries: 1, headers: MASKED });
    expect((failed.error.cause as Error).message).toContain(`inner refused`);
  });

  it('is everything where a mask has a bug', async () => {
    const app = await start();
    await attempt(app, 'breaks', payload);
    const exhausted = app
      .get(JobEvents)
      .events()
      .find((event) => event.type === 'job.exhausted') as unknown as { job: { payload: unknown } };
    expect(exhausted.job.payload).toBe(MASKED);
    expect(shownBy(app.get(JobEvents))).not.toContain(CARD);
  });

  it('is refused unless it is a mask', async () => {
    const connection = apps.database.url;
    for (const mask of [true, 'password', [1], [''], {}]) {
      const imports = [JobsModule.forRoot({ connection, mask: mask as unknown as Mask })];
      expect(await apps.startFailure({ imports })).toBeInstanceOf(InvalidOptionsError);
    }
  });

  it('is a matter of pools outside Nest', async () => {
    const app = await start();
    const events = createCollectingEvents();
    const pool = createWorkerPool({
      jobs: app.get(JobManager),
      events,
      mask: ['password'],
      tasks: { plain: { handler: () => CARD, mask: () => 'shown' } },
    });
    await pool.start();
    await app.get(JobManager).addJob('plain', payload);
    const [completed] = await eventually(() => {
      const found = events.ofType('job.completed');
      return found.length ? found : null;
    });
    await pool.stop();
    expect([completed!.job.payload, completed!.result]).toEqual(['shown', 'shown']);
  });
});

describe('paths', () => {
  const show = (value: unknown, mask: Mask): unknown => {
    const job = { task: 't', payload: value, progress: null, lastError: null };
    return (new JobMask(mask, () => undefined).apply({ job } as never) as { job: { payload: unknown } }).job.payload;
  };

  it.each([
    ['a', { a: 1, b: { a: 2, c: [{ a: 3 }] } }, { a: MASKED, b: { a: MASKED, c: [{ a: MASKED }] } }],
    ['a.b', { a: { b: 1, c: 2 }, d: { a: { b: 3 } } }, { a: { b: MASKED, c: 2 }, d: { a: { b: 3 } } }],
    ['a.b', { a: [{ b: 1 }, { c: 2 }] }, { a: [{ b: MASKED }, { c: 2 }] }],
    ['a.b.c', { a: { b: { c: { d: 1 } } } }, { a: { b: { c: MASKED } } }],
    ['a.b', [{ a: { b: 1 } }], [{ a: { b: MASKED } }]],
    ['a', { a: null, b: 'a' }, { a: MASKED, b: 'a' }],
    ['__proto__', JSON.parse('{"__proto__":{"x":1}}'), JSON.parse(`{"__proto__":"${MASKED}"}`)],
    ['a', 'a', 'a'],
  ])('%s', (path, value, shown) => {
    expect(show(value, [path])).toEqual(shown);
  });

  it('never change the value itself, and never show what they name, whatever the value', () => {
    fc.assert(
      fc.property(fc.object({ maxDepth: 4, values: [fc.string(), fc.integer(), fc.constant(null)] }), (value) => {
        const secret = 'unmistakable-secret';
        const given = { ...value, nested: [value, { password: secret }], password: { deep: secret } };
        const before = structuredClone(given);
        const shown = show(given, ['password']);
        expect(given).toEqual(before);
        expect(inspect(shown, { depth: 50 })).not.toContain(secret);
      }),
      { numRuns: 200 },
    );
  });
});
