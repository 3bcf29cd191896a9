// Run by open-handles.spec.ts in a Jest of its own, which must find nothing left open. Everything a process can open:
// a manager, a pool with LISTEN, crons, a second instance, an application that only enqueues, jobs that run in a spec.
import { afterAll, beforeAll, expect, it } from '@jest/globals';
import { Injectable, Module } from '@nestjs/common';
import { Test, type TestingModule } from '@nestjs/testing';
import { createJobManager, createWorkerPool, JobEvents, JobManager, JobsModule, Task } from '../../lib/index.js';
import { createJobsTesting } from '../../lib/testing.js';
import { createTestDatabase, type TestDatabase } from '../support/database.js';

@Injectable()
class Tasks {
  @Task('hello')
  hello(): string {
    return 'hello';
  }
}

let database: TestDatabase;

beforeAll(async () => {
  database = await createTestDatabase();
});
afterAll(() => database.drop());

it('closes everything it opens', async () => {
  const { url: connection } = database;
  @Module({
    imports: [
      JobsModule.forRoot({ connection }),
      JobsModule.forRoot({ connection, name: 'second', schema: 'second', worker: false }),
    ],
    providers: [Tasks],
  })
  class AppModule {}
  const app: TestingModule = await Test.createTestingModule({ imports: [AppModule] }).compile();
  app.useLogger(false);
  await app.init();
  const done = new Promise((resolve) => app.get(JobEvents).on('job.completed', resolve));
  await app.get(JobManager).addJob('hello', null);
  await done;
  await app.close();

  const tested = await Test.createTestingModule({
    imports: [JobsModule.forRoot({ connection, worker: { autoStart: false } })],
    providers: [Tasks],
  }).compile();
  tested.useLogger(false);
  await tested.init();
  const testing = createJobsTesting(tested);
  testing.inline();
  await tested.get(JobManager).addJob('hello', null);
  expect(testing.ran).toHaveLength(1);
  await tested.close();

  const jobs = await createJobManager({ connection });
  const pool = createWorkerPool({ jobs, tasks: { hello: () => undefined } });
  await pool.start();
  await pool.stop();
  await jobs.close();
  expect(pool.state).toBe('terminated');
});
