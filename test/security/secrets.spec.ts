// Connection strings, passwords and keys: in no error, no log, and not in what a manager shows of itself.
import { randomBytes } from 'node:crypto';
import { inspect } from 'node:util';
import { Module } from '@nestjs/common';
import { afterAll, afterEach, beforeAll, describe, expect, it } from '@jest/globals';
import { createJobManager, JobEvents, JobManager, JobsMigrator, JobsModule } from '../../lib/index.js';
import { JobLogger } from '../../lib/monitoring/job.logger.js';
import { applicationsOnOneDatabase, type Applications } from '../support/app.js';

const PASSWORD = 'hunter2-é/?#';
const ENCODED = encodeURIComponent(PASSWORD);
const leaks = (value: unknown): boolean => {
  const shown = inspect(value, { depth: 20, showHidden: true, getters: true, maxStringLength: null });
  const stacks: string[] = [];
  for (let error = value; error instanceof Error; error = error.cause) stacks.push(String(error), error.stack ?? '');
  return [shown, ...stacks].some((text) => text.includes('hunter2') || text.includes(ENCODED));
};

describe('a password', () => {
  let apps: Applications;
  beforeAll(async () => {
    apps = await applicationsOnOneDatabase();
  });
  afterEach(() => apps.close());
  afterAll(() => apps.drop());

  const hostOf = (): string => new URL(apps.database.url).host;
  const connections: [string, () => string | object][] = [
    ['nothing listens', () => `postgres://user:${ENCODED}@127.0.0.1:1/none`],
    ['no such host', () => `postgres://user:${ENCODED}@no-such-host.invalid/none`],
    ['no such role', () => `postgres://user:${ENCODED}@${hostOf()}/none`],
    ['no such database', () => apps.database.url.replace(/\/test_\w+$/, '/none').replace('//', '//')],
    ['a port that is none', () => `postgres://user:${ENCODED}@127.0.0.1:port/none`],
    ['a broken escape', () => `postgres://user:%E0%A4%A${ENCODED}@127.0.0.1/none`],
    ['a space', () => `postgres://user:${ENCODED}@127.0.0.1:1 /none`],
    ['no URL', () => `user:${ENCODED}@127.0.0.1`],
    ['another scheme', () => `mysql://user:${ENCODED}@127.0.0.1/none`],
    [
      'a certificate that is not there',
      () => `postgres://user:${ENCODED}@127.0.0.1:1/none?sslrootcert=/none.pem&sslmode=verify-full`,
    ],
    ['a configuration', () => ({ host: '127.0.0.1', port: 1, user: 'user', password: PASSWORD })],
    ['a misnamed configuration', () => ({ url: `postgres://user:${ENCODED}@127.0.0.1/none` })],
    [
      'a function that fails',
      () => ({
        host: hostOf().split(':')[0],
        port: Number(hostOf().split(':')[1]),
        user: 'nobody-at-all',
        password: () => PASSWORD,
      }),
    ],
  ];

  it.each(connections)('is in no error when the connection fails: %s', async (_what, connection) => {
    const options = { connection: connection() as string };
    const failures = [
      await createJobManager(options).catch((error: unknown) => error),
      await (async () => new JobsMigrator(options).migrate())().catch((error: unknown) => error),
      await apps.startFailure({ imports: [JobsModule.forRoot(options)] }),
    ];
    for (const failure of failures) {
      expect(failure).toBeInstanceOf(Error);
      expect([(failure as Error).message, leaks(failure)]).toEqual([(failure as Error).message, false]);
    }
    expect(leaks(apps.logger.lines)).toBe(false);
  });

  it('in a listenConnection that fails is in no event and no line of the log', async () => {
    const listenConnection = `postgres://user:${ENCODED}@127.0.0.1:1/none`;
    const app = await apps.start({
      imports: [JobsModule.forRoot({ connection: apps.database.url, listenConnection })],
    });
    const events = app.get(JobEvents).events();
    expect(leaks(events)).toBe(false);
    expect(leaks(apps.logger.lines)).toBe(false);
  });

  it('in a driver’s message is not logged', () => {
    const lines: unknown[] = [];
    const log = (...line: unknown[]): void => void lines.push(line);
    const events = new JobEvents();
    new JobLogger({ error: log, warn: log, log, debug: log }).subscribe(events);
    const error = new Error(`cannot reach postgres://user:${ENCODED}@host/db, or postgres://u:hunter2@x`);
    events.emit('worker.error', null, { error, context: 'test' });
    events.emit('job.exhausted', null, { error, job: { id: '1', task: 't' } as never });
    expect(lines).toHaveLength(2);
    expect(leaks(lines)).toBe(false);
  });

  it('is not in what the parts of an application show of themselves, nor is a key', async () => {
    const key = randomBytes(32);
    const url = new URL(apps.database.url);
    const secret = decodeURIComponent(url.password);
    @Module({
      imports: [JobsModule.forRoot({ connection: url.href, encryption: { keys: [{ id: 'k', key }] } })],
    })
    class App {}
    const app = await apps.start({ imports: [App] });
    const shown = inspect(app.get(JobManager), { depth: 20, maxStringLength: null });
    for (const text of [key.toString('hex'), key.toString('base64'), inspect(key).slice(8, 30)]) {
      expect(shown).not.toContain(text);
    }
    expect(shown).not.toContain(url.href);
    expect(secret === '' || !shown.includes(`:${secret}@`)).toBe(true);
    expect([JSON.stringify(app.get(JobManager)), shown]).toEqual([
      '{"schema":"jobs"}',
      `JobManager { schema: 'jobs' }`,
    ]);
  });
});
