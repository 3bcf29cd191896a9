// Runs under Jest and Vitest alike, with the globals of either.
import 'reflect-metadata';
import { Test, type TestingModule } from '@nestjs/testing';
import { JobManager, PayloadValidationError, WorkerPool } from 'millrace';
import { type EmbeddedPostgres, startEmbeddedPostgres } from 'millrace/embedded';
import { createJobsTesting } from 'millrace/testing';
import { MailModule } from './mail.module';

describe('mail', () => {
  let postgres: EmbeddedPostgres;
  let app: TestingModule;

  beforeAll(async () => {
    postgres = await startEmbeddedPostgres();
    process.env.DATABASE_URL = postgres.url;
    app = await Test.createTestingModule({ imports: [MailModule] }).compile();
    await app.init();
  }, 60_000);
  afterAll(async () => {
    await app.close();
    await postgres.stop();
  }, 60_000);

  it('is sent', async () => {
    const testing = createJobsTesting(app);
    await app.get(JobManager).addJob('send-mail', { to: 'ada@example.org' });
    const [ran] = await testing.drain();
    expect(ran?.result).toBe('sent to ada@example.org');
    await testing.close();
  });

  it('is refused without an address', async () => {
    const refusal: unknown = await app
      .get(JobManager)
      .addJob('send-mail', { to: 'ada' })
      .catch((error: unknown) => error);
    expect(refusal).toBeInstanceOf(PayloadValidationError);
  });

  it('is sent by the worker pool, with its heartbeat on a thread', async () => {
    const jobs = app.get(JobManager);
    const { id } = await jobs.addJob('send-mail', { to: 'bob@example.org' });
    await app.get(WorkerPool).start();
    expect((await jobs.waitForJob(id, { timeoutMs: 20_000 })).result).toBe('sent to bob@example.org');
  }, 30_000);
});
