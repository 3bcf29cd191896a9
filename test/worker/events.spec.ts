import { describe, expect, it } from '@jest/globals';
import { createCollectingEvents, createNoopEvents, JobEvents, type Job } from '../../lib/index.js';

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

  it('counts the error of a subscriber as dropped and lets it reach nobody', async () => {
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
