import { Injectable } from '@nestjs/common';
import { afterAll, afterEach, beforeAll, describe, expect, it } from '@jest/globals';
import { Type } from 'class-transformer';
import { IsDate, IsEmail } from 'class-validator';
import {
  defineTask,
  JobEvents,
  JobManager,
  JobsModule,
  PayloadValidationError,
  type StandardSchema,
  Task,
} from '../../lib/index.js';
import { applicationsOnOneDatabase, attempt, type Applications } from '../support/app.js';
import { eventually } from '../support/database.js';

class Mail {
  @IsEmail()
  to!: string;

  @IsDate()
  @Type(() => Date)
  at!: Date;
}

/** Takes text with a number in it, gives the number. */
const numeric: StandardSchema<number, string> = {
  '~standard': {
    version: 1,
    vendor: 'test',
    validate: (value) =>
      Number.isNaN(Number(value)) ? { issues: [{ message: 'is no number' }] } : { value: Number(value) },
  },
};
const double = defineTask('double', numeric);
const describeMail = (mail: Mail): unknown => [mail instanceof Mail, mail.at instanceof Date, mail.at.getUTCFullYear()];

@Injectable()
class Tasks {
  @Task('by-parameter')
  byParameter(mail: Mail): unknown {
    return describeMail(mail);
  }

  @Task('by-option', { payload: Mail })
  byOption(mail: Mail): unknown {
    return describeMail(mail);
  }

  @Task(double)
  double(value: number): number {
    return value * 2;
  }

  @Task('free')
  free(payload: Record<string, unknown>): unknown {
    return payload;
  }

  @Task('built-in')
  builtIn(payload: Date): unknown {
    return typeof payload;
  }
}

describe('the payload of a task', () => {
  let apps: Applications;
  const start = () =>
    apps.start({ imports: [JobsModule.forRoot({ connection: apps.database.url })], providers: [Tasks] });
  const mail = { to: 'ada@example.org', at: '2026-05-05T00:00:00.000Z' };

  beforeAll(async () => {
    apps = await applicationsOnOneDatabase();
  });
  afterEach(() => apps.close());
  afterAll(() => apps.drop());

  it.each(['by-parameter', 'by-option'])('reaches the handler as a DTO’s instance: %s', async (task) => {
    const app = await start();
    expect((await attempt(app, task, mail)).result).toEqual([true, true, 2026]);
  });

  it('is stored as it was given', async () => {
    const app = await start();
    const job = await app.get(JobManager).addJob('by-parameter', { ...mail, more: 1 }, { delayMs: 60_000 });
    expect((await app.get(JobManager).findJob(job.id))!.payload).toEqual({ ...mail, more: 1 });
  });

  it('is checked by a Standard Schema, whose output the handler gets', async () => {
    const app = await start();
    expect((await attempt(app, 'double', '21')).result).toBe(42);
    const job = await app.get(JobManager).addJob(double, '4', { delayMs: 60_000 });
    expect(job.payload).toBe('4');
  });

  it('that is wrong is refused with every constraint, and nothing is inserted', async () => {
    const app = await start();
    const jobs = app.get(JobManager);
    const before = (await jobs.counts()).byTask;
    const refusal = await jobs.addJob('by-parameter', { to: 'x', at: 'never' }).catch((error: unknown) => error);
    expect(refusal).toBeInstanceOf(PayloadValidationError);
    expect((refusal as PayloadValidationError).issues.map(({ path }) => path)).toEqual(['to', 'at']);
    await expect(
      jobs.addJobs([
        { task: 'by-option', payload: mail },
        { task: 'by-option', payload: {} },
      ]),
    ).rejects.toThrow(PayloadValidationError);
    await expect(jobs.addJob(double, 'many')).rejects.toThrow(/is no number/);
    expect((await jobs.counts()).byTask).toEqual(before);
  });

  it('of any type is free where the parameter’s type is no class', async () => {
    const app = await start();
    expect((await attempt(app, 'free', { a: [1, null] })).result).toEqual({ a: [1, null] });
    expect((await attempt(app, 'built-in', '2026-01-01')).result).toBe('string');
  });

  it('that was stored before its schema changed exhausts the job at once', async () => {
    const app = await start();
    const { id } = await app.get(JobManager).addJob('by-option', mail, { maxAttempts: 5, delayMs: 60_000 });
    await apps.database.pool.query(`update jobs.job_bodies set payload = '{"to":"x"}' where id = $1`, [id]);
    await app.get(JobManager).rescheduleJobs([id], { runAt: new Date(0) });
    const exhausted = await eventually(() =>
      app
        .get(JobEvents)
        .events()
        .find((event) => event.type === 'job.exhausted' && event.job.id === id),
    );
    expect((exhausted as { error?: unknown }).error).toBeInstanceOf(PayloadValidationError);
    expect(await app.get(JobManager).findJob(id)).toMatchObject({ status: 'exhausted', attempts: 1 });
  });
});
