import { Injectable, Module } from '@nestjs/common';
import { Test } from '@nestjs/testing';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { JobManager, JobsModule, Task } from '../../lib/index.js';
import { createTestDatabase, eventually, type TestDatabase } from '../support/database.js';

const seen: unknown[] = [];
@Injectable()
class Tasks {
  @Task('x')
  run(payload: unknown) {
    seen.push(payload);
  }
}
describe('s', () => {
  let database: TestDatabase;
  beforeAll(async () => void (database = await createTestDatabase()));
  afterAll(() => database.drop());
  it('runs', async () => {
    const module = await Test.createTestingModule({ imports: [JobsModule.forRoot({ connection: database.url })], providers: [Tasks] }).compile();
    await module.init();
    await module.get(JobManager).addJob('x', { a: 1 });
    await eventually(() => seen.length === 1, { timeoutMs: 5000 });
    await module.close();
  });
});
