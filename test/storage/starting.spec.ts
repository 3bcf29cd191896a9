// What the start and the end say of the database: the right remedy, and how long it was waited for.
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { createServer, type Server } from 'node:net';
import { once } from 'node:events';
import {
  createJobManager,
  DatabaseUnavailableError,
  JobsMigrator,
  MissingPrivilegesError,
  StoppedError,
} from '../../lib/index.js';
import { DuplicateTaskError } from '../../lib/jobs.errors.js';
import { createTestDatabase, type TestDatabase } from '../support/database.js';

let database: TestDatabase;
beforeAll(async () => (database = await createTestDatabase()));
afterAll(() => database.drop());

const failureOf = async (work: Promise<unknown>): Promise<Error> => {
  const failure: unknown = await work.catch((error: unknown) => error);
  if (failure instanceof Error) return failure;
  throw new Error('Expected a failure, got none.');
};

const as = (changes: { username?: string; password?: string; database?: string }): string => {
  const url = new URL(database.url);
  if (changes.username) url.username = changes.username;
  if (changes.password) url.password = changes.password;
  if (changes.database) url.pathname = `/${changes.database}`;
  return url.href;
};

describe('a start', () => {
  it.each([
    ['role', { username: 'nobody_here' }],
    ['database', { database: 'nothing_here' }],
  ])('that names a %s which does not exist is not told to wait for it', async (_what, changes) => {
    const failure = await failureOf(createJobManager({ connection: as(changes) }));
    expect(failure).toBeInstanceOf(DatabaseUnavailableError);
    expect(failure.message).toMatch(/refused the connection: .*does not exist\. Check "connection"\.$/);
  });

  it('that may not create the schema is told which role may, and not to grant what migrations never get', async () => {
    const role = `plain_${process.pid}_${Date.now()}`;
    await database.pool.query(`create role ${role} login password 'plain'`);
    const failure = await failureOf(createJobManager({ connection: as({ username: role, password: 'plain' }) }));
    await database.pool.query(`drop role ${role}`);
    expect(failure).toBeInstanceOf(MissingPrivilegesError);
    expect(failure.message).toMatch(
      /may not migrate schema "jobs": permission denied .*npx millrace migrate.*migrate: false/,
    );
    expect(failure.message).not.toMatch(/Have the owner/);
  });
});

describe('waitForDatabaseMs', () => {
  const servers: Server[] = [];
  afterAll(() => servers.forEach((server) => server.close()));

  const refusing = async (): Promise<{ url: string; port: number }> => {
    const server = createServer().listen(0, '127.0.0.1');
    await once(server, 'listening');
    const { port } = server.address() as { port: number };
    server.close();
    await once(server, 'close');
    return { url: `postgres://postgres@127.0.0.1:${port}/x`, port };
  };

  it('is waited for to its end, and the last reason is told', async () => {
    const { url } = await refusing();
    const startedAt = performance.now();
    const migrator = new JobsMigrator({ connection: url, waitForDatabaseMs: 1_500 });
    const failure = await failureOf(migrator.migrate());
    await migrator.close();
    // Not a matter of speed: it must not end before its time.
    expect(performance.now() - startedAt).toBeGreaterThanOrEqual(1_500);
    expect(failure.message).toMatch(/ECONNREFUSED.*The start waited for 1500 ms/);
  });

  it('is enough for a database that comes when the time is nearly up', async () => {
    const { url, port } = await refusing();
    const migrator = new JobsMigrator({ connection: url, waitForDatabaseMs: 1_200 });
    const answered = new Promise<void>((resolve) => {
      const server = createServer((socket) => {
        resolve();
        socket.destroy();
      });
      servers.push(server);
      // Tries that double their pauses come at 250 and 750 ms, and would come at 1,750 ms.
      setTimeout(() => server.listen(port, '127.0.0.1'), 1_000);
    });
    const failure = failureOf(migrator.migrate());
    await answered;
    expect(await failure).toBeInstanceOf(DatabaseUnavailableError);
    await migrator.close();
  });
});

describe('a closed manager', () => {
  it('refuses calls by a typed error', async () => {
    const jobs = await createJobManager({ connection: database.url });
    await jobs.close();
    await expect(jobs.addJob('x', 1)).rejects.toBeInstanceOf(StoppedError);
    await expect(jobs.addJobs([{ task: 'x', payload: 1 }])).rejects.toBeInstanceOf(StoppedError);
    await expect(jobs.listJobs()).rejects.toBeInstanceOf(StoppedError);
    await expect(jobs.retryJobs([])).rejects.toBeInstanceOf(StoppedError);
  });
});

describe('an error', () => {
  it('of two handlers tells one provider in two modules from two methods', () => {
    const twice = new DuplicateTaskError('mail', ['Mail.send in A', 'Mail.send in B']);
    expect(twice.message).toMatch(/in both modules|of both modules/);
    expect(twice.message).not.toMatch(/Rename/);
    expect(new DuplicateTaskError('mail', ['Mail.send in A', 'Other.send in A']).message).toMatch(/Rename one of them/);
  });
});
