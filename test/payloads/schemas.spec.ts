// Payload schemas as users have them: zod's, and DTO classes that @nestjs/mapped-types derives.
import { Injectable } from '@nestjs/common';
import { OmitType, PartialType, PickType } from '@nestjs/mapped-types';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { Type } from 'class-transformer';
import { IsDate, IsEmail, IsInt, ValidateNested } from 'class-validator';
import { z } from 'zod';
import { JobManager, JobsModule, Task } from '../../lib/index.js';
import { applicationsOnOneDatabase, type Applications } from '../support/app.js';

class Address {
  @IsEmail()
  email!: string;
}

class CreateUser {
  @ValidateNested()
  @Type(() => Address)
  address!: Address;

  @IsInt()
  age!: number;

  @IsDate()
  @Type(() => Date)
  born!: Date;
}

class UpdateUser extends PartialType(CreateUser) {}
class UserAge extends PickType(CreateUser, ['age'] as const) {}
class UserWithoutAge extends OmitType(CreateUser, ['age'] as const) {}

const Order = z.object({
  id: z.number().int(),
  at: z.coerce.date(),
  note: z.string().trim().default('none'),
});
type Order = z.infer<typeof Order>;

const got: unknown[] = [];

@Injectable()
class Tasks {
  @Task('update-user')
  update(payload: UpdateUser): void {
    got.push(payload);
  }

  @Task('set-age')
  setAge(payload: UserAge): void {
    got.push(payload);
  }

  @Task('without-age', { payload: UserWithoutAge })
  withoutAge(payload: UserWithoutAge): void {
    got.push(payload);
  }

  @Task('order', { payload: Order })
  order(payload: Order): void {
    got.push(payload);
  }

  @Task('bytes', { payload: z.object({ bytes: z.instanceof(Buffer) }) })
  bytes(): void {}

  @Task('date', { payload: z.object({ at: z.date() }) })
  date(): void {}
}

let apps: Applications;
let jobs: JobManager;

beforeAll(async () => {
  apps = await applicationsOnOneDatabase();
  const app = await apps.start({
    imports: [JobsModule.forRoot({ connection: apps.database.url })],
    providers: [Tasks],
  });
  jobs = app.get(JobManager);
});
afterAll(async () => {
  await apps.close();
  await apps.drop();
});

async function received(task: string, payload: unknown): Promise<unknown> {
  const { id } = await jobs.addJob(task, payload);
  expect(await jobs.waitForJob(id, { timeoutMs: 10_000 })).toMatchObject({ status: 'completed' });
  return got.at(-1);
}

describe('a DTO class that @nestjs/mapped-types derives', () => {
  const born = new Date('1990-05-05T00:00:00Z');

  it('takes what PartialType leaves out, and transforms the rest', async () => {
    expect(await received('update-user', {})).toBeInstanceOf(UpdateUser);
    const full = (await received('update-user', { address: { email: 'ada@example.org' }, born })) as UpdateUser;
    expect(full).toEqual({ address: { email: 'ada@example.org' }, born });
    expect(full.address).toBeInstanceOf(Address);
  });

  it.each<[string, unknown, string]>([
    ['update-user', { age: 'old' }, 'age'],
    ['update-user', { address: { email: 'ada' } }, 'address.email'],
    ['set-age', {}, 'age'],
    ['without-age', { address: { email: 'ada@example.org' } }, 'born'],
  ])('refuses what its class would refuse: %s %p', async (task, payload, path) => {
    const refusal = { code: 'ERR_JOBS_PAYLOAD_INVALID', message: expect.stringContaining(path) as unknown as string };
    await expect(jobs.addJob(task, payload)).rejects.toMatchObject(refusal);
  });

  it('is found by the type of the parameter, and as an option', async () => {
    expect(await received('set-age', { age: 7 })).toEqual({ age: 7 });
    const payload = { address: { email: 'ada@example.org' }, born };
    expect(await received('without-age', payload)).toBeInstanceOf(UserWithoutAge);
  });
});

describe('a schema of zod', () => {
  it('gives the handler its output', async () => {
    const at = new Date('2026-01-02T03:04:05Z');
    expect(await received('order', { id: 1, at, note: ' hi ' })).toEqual({ id: 1, at, note: 'hi' });
    expect(await received('order', { id: 1, at: at.toISOString() })).toEqual({ id: 1, at, note: 'none' });
  });

  it.each<[string, unknown]>([
    ['order', { id: 1.5, at: new Date() }],
    ['order', { id: 1 }],
    ['date', { at: new Date() }],
    ['bytes', { bytes: Buffer.from('hi') }],
  ])('refuses what would fail in the form in which it is stored: %s %p', async (task, payload) => {
    await expect(jobs.addJob(task, payload)).rejects.toMatchObject({
      code: expect.stringMatching(/PAYLOAD/) as unknown as string,
    });
  });
});
