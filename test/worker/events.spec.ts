import { runInNewContext } from 'node:vm';
import { describe, expect, it } from '@jest/globals';
import { createCollectingEvents, createNoopEvents, JobEvents, type Job, type JobEvent } from '../../lib/index.js';
import { TOO_LARGE } from '../../lib/monitoring/event.ring.js';

const fire = (events: JobEvents, cronId: string): void =>
  events.emit('cron.fired', null, { cronId, slot: new Date(0), job: {} as Job });

describe('JobEvents', () => {
  it('tells subscribers of a type, or of all, until they unsubscribe (on, off)', () => {
    const events = new JobEvents();
    const heard: string[] = [];
    const one = events.on('cron.fired', ({ cronId }) => heard.push(`one ${cronId}`));
    events.on('all', ({ type }) => heard.push(`all ${type}`));
    events.on('pool.stop', () => heard.push('never'));
    fire(events, 'a');
    expect(events.off(one)).toBe(true);
    expect(events.off(one)).toBe(false);
    fire(events, 'b');
    expect(heard).toEqual(['one a', 'all cron.fired', 'all cron.fired']);
  });

  it('counts the error of a subscriber as dropped and lets it go no further', async () => {
    const events = new JobEvents();
    events.on('cron.fired', () => {
      throw new Error('mine');
    });
    events.on('cron.fired', () => Promise.reject(new Error('mine too')));
    fire(events, 'a');
    await Promise.resolve();
    await Promise.resolve();
    expect(events.stats()).toEqual({ emitted: 1, dropped: 2 });
  });

  it('remembers the last thousand, oldest first', () => {
    const events = new JobEvents();
    for (let n = 0; n < 1_005; n++) fire(events, String(n));
    const names = events.events().map((event) => (event.type === 'cron.fired' ? event.cronId : ''));
    expect(names).toHaveLength(1_000);
    expect([names[0], names.at(-1)]).toEqual(['5', '1004']);
  });

  it('remembers small payloads as they are, and of large values only that they were there', () => {
    const events = new JobEvents();
    const heard: unknown[] = [];
    events.on('job.completed', ({ job, result }) => heard.push((job.payload as { text: string }).text.length, result));
    const [small, large] = [{ to: 'ada@example.org' }, { text: 'x'.repeat(1_000_000) }];
    const jobOf = (payload: unknown): Job => ({ id: 'j', payload, progress: payload, lastError: null }) as Job;
    events.emit('job.started', null, { job: jobOf(small) });
    events.emit('job.completed', null, { job: jobOf(large), executionTimeMs: 1, result: 'y'.repeat(5_000) });
    const [started, completed] = events.events();
    expect(started).toMatchObject({ type: 'job.started', job: { payload: small } });
    expect(completed).toMatchObject({ job: { id: 'j', payload: TOO_LARGE, progress: TOO_LARGE }, result: TOO_LARGE });
    expect(heard).toEqual([1_000_000, 'y'.repeat(5_000)]);
    expect(large.text).toHaveLength(1_000_000);
  });

  it.each<[string, unknown]>([
    ['a long text', 'x'.repeat(1_000_000)],
    ['many small entries', Array.from({ length: 1_000 }, (_, n) => n)],
    ['deep nesting', Array.from({ length: 1_000 }).reduce<unknown>((inner) => [inner], 1)],
    ['a circle', ((circle: { self?: unknown }) => (circle.self = circle))({})],
    ['a long key', { ['k'.repeat(10_000)]: 1 }],
    ['a buffer', { body: Buffer.alloc(10) }],
    [
      'a getter that throws',
      Object.defineProperty({}, 'it', { enumerable: true, get: () => JSON.parse('{') as never }),
    ],
  ])('keeps no value that is, or may be, large: %s', (_what, payload) => {
    const events = new JobEvents();
    for (let n = 0; n < 10; n++) events.emit('job.started', null, { job: { id: 'j', payload } as Job });
    expect(JSON.stringify(events.events()).length).toBeLessThan(2_000);
  });

  it('takes what was made elsewhere as it is, and what throws when it is looked at for large', () => {
    const events = new JobEvents();
    const elsewhere: unknown = runInNewContext('({ to: { name: "ada" }, at: new Date(0), why: new TypeError("no") })');
    const trap = (): never => {
      throw new Error('trap');
    };
    const hostile = new Proxy({}, { get: trap, getPrototypeOf: trap, ownKeys: trap });
    events.emit('job.failed', null, {
      job: { id: 'j', payload: elsewhere } as Job,
      error: hostile,
      executionTimeMs: 1,
      retryAt: null,
    });
    const [failed] = events.events() as JobEvent<'job.failed'>[];
    expect(failed!.job.payload).toBe(elsewhere);
    expect(failed!.error).toBe(TOO_LARGE);
  });

  it('shortens an error that is large, or holds on to other things, and keeps its class and code', () => {
    const events = new JobEvents();
    const large = Object.assign(new RangeError('m'.repeat(100_000)), { code: 'E_LARGE', socket: new JobEvents() });
    const plain = new TypeError('plain', { cause: new Error('why') });
    events.emit('worker.error', null, { error: large, context: 'c' });
    events.emit('worker.error', null, { error: plain, context: 'c' });
    const [first, second] = events.events().map((event) => (event as { error: RangeError & { code?: string } }).error);
    expect(first).toBeInstanceOf(RangeError);
    expect(first).toMatchObject({ code: 'E_LARGE', name: 'RangeError' });
    expect(first).not.toHaveProperty('socket');
    expect(first!.message).toHaveLength(1_001);
    expect(second).toBe(plain);
  });

  it('has a collecting and a silent variant for tests', () => {
    const collecting = createCollectingEvents();
    fire(collecting, 'a');
    expect(collecting.ofType('cron.fired')).toMatchObject([{ cronId: 'a', workerId: null }]);
    collecting.clear();
    expect(collecting.collected).toEqual([]);
    const silent = createNoopEvents();
    silent.on('all', () => {
      throw new Error('never');
    });
    fire(silent, 'a');
    expect(silent.stats()).toEqual({ emitted: 0, dropped: 0 });
  });
});
