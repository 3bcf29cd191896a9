// A payload is checked in the form in which it is stored: what addJob accepts, the handler gets.
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { IsDate, IsString } from 'class-validator';
import { Type } from 'class-transformer';
import {
  createWorkerPool,
  PayloadNotSerializableError,
  type StandardSchema,
  type WorkerPool,
} from '../../lib/index.js';
import { createTestManager, type TestManager } from '../support/manager.js';

class Untyped {
  @IsDate()
  at!: Date;
}

class Typed {
  @IsDate()
  @Type(() => Date)
  at!: Date;
}

class Named {
  @IsString()
  name!: string;
}

const date: StandardSchema<unknown> = {
  '~standard': {
    version: 1,
    vendor: 'test',
    validate: (value) => {
      const { at } = value as { at: unknown };
      return at instanceof Date ? { value } : { issues: [{ message: `expected a Date, got a ${typeof at}` }] };
    },
  },
};

let manager: TestManager;
let pool: WorkerPool;
const got: unknown[] = [];

beforeAll(async () => {
  manager = await createTestManager();
  const handler = (payload: unknown): void => void got.push(payload);
  pool = createWorkerPool({
    jobs: manager.jobs,
    tasks: {
      untyped: { payload: Untyped, handler },
      typed: { payload: Typed, handler },
      named: { payload: Named, handler },
      schema: { payload: date, handler },
      anything: { handler },
    },
  });
  await pool.start();
});

afterAll(async () => {
  await pool.stop();
  await manager.close();
});

const countJobs = async (): Promise<number> => (await manager.jobs.listJobs()).items.length;

describe('a payload', () => {
  it.each(['untyped', 'schema'])(
    'is refused when it is added, where the stored form fails the schema (%s)',
    async (task) => {
      const counted = await countJobs();
      await expect(manager.jobs.addJob(task, { at: new Date() })).rejects.toMatchObject({
        code: 'ERR_JOBS_PAYLOAD_INVALID',
      });
      expect(await countJobs()).toBe(counted);
    },
  );

  it('that the schema accepts after its way through JSON reaches the handler', async () => {
    const at = new Date('2026-01-02T03:04:05Z');
    const { id } = await manager.jobs.addJob('typed', { at });
    expect(await manager.jobs.waitForJob(id)).toMatchObject({ status: 'completed' });
    expect(got.at(-1)).toEqual({ at });
    expect(got.at(-1)).toBeInstanceOf(Typed);
  });

  it('may be an instance of its DTO', async () => {
    const { id } = await manager.jobs.addJob('named', Object.assign(new Named(), { name: 'Ada' }));
    expect(await manager.jobs.waitForJob(id)).toMatchObject({ status: 'completed' });
  });

  const deep = (levels: number): unknown => {
    let value: unknown = null;
    for (let level = 0; level < levels; level++) value = [value];
    return value;
  };
  class Box {
    readonly hold = (): number => 1;
  }

  it.each<[string, unknown, RegExp]>([
    ['an invalid Date', { at: new Date('never') }, /payload\.at is an invalid Date/],
    ['a Promise', { later: Promise.resolve(1) }, /payload\.later is of type Promise/],
    ['an Error', { error: Object.assign(new Error('x'), { code: 1 }) }, /payload\.error is of type Error/],
    ['a RegExp', [/x/], /payload\.0 is of type RegExp/],
    ['URLSearchParams', { query: new URLSearchParams('a=1') }, /payload\.query is of type URLSearchParams/],
    ['a typed array', { bytes: new Uint8Array([1, 2]) }, /payload\.bytes is of type Uint8Array/],
    ['an ArrayBuffer', { bytes: new ArrayBuffer(2) }, /payload\.bytes is of type ArrayBuffer/],
    ['undefined in an array', { list: [1, undefined] }, /payload\.list\.1 is undefined/],
    // oxlint-disable-next-line no-sparse-arrays
    ['a gap in an array', [1, , 3], /payload\.1 is undefined/],
    ['a function', { on: { end: () => 1 } }, /payload\.on\.end is a function/],
    ['a function as a field', new Box(), /payload\.hold is a function/],
    ['a symbol', { s: Symbol('x') }, /payload\.s is a symbol/],
    ['a Map', new Map([[1, 2]]), /payload is of type Map/],
    ['a Set in an object that writes itself', { toJSON: () => ({ all: new Set([1]) }) }, /payload\.all is of type Set/],
    ['infinity', { n: -Infinity }, /payload\.n is -Infinity/],
    ['a function alone', () => 1, /payload is a function/],
    ['a toJSON without an answer', { toJSON: () => undefined }, /toJSON returns undefined/],
    ['too many levels', deep(5_000), /levels deep|too deeply/],
  ])('with %s is refused, because JSON would lose it', async (_what, payload, reason) => {
    const failure: unknown = await manager.jobs.addJob('anything', payload).catch((error: unknown) => error);
    expect(failure).toBeInstanceOf(PayloadNotSerializableError);
    expect((failure as Error).message).toMatch(reason);
  });

  it.each<[string, unknown, unknown]>([
    ['a Date', { at: new Date(0) }, { at: '1970-01-01T00:00:00.000Z' }],
    ['a URL', { to: new URL('http://h/') }, { to: 'http://h/' }],
    ['an undefined property', { a: undefined, b: null }, { b: null }],
    ['an empty object', { a: {}, b: [] }, { a: {}, b: [] }],
    ['one object twice', [Named, Named].map(() => ({ x: 1 })), [{ x: 1 }, { x: 1 }]],
    ['an object without a prototype', Object.assign(Object.create(null) as object, { a: 1 }), { a: 1 }],
    ['an instance', Object.assign(new Named(), { name: 'x' }), { name: 'x' }],
    ['nothing', undefined, null],
    ['many levels', deep(500), deep(500)],
  ])('with %s is stored as JSON writes it', async (_what, payload, stored) => {
    expect((await manager.jobs.addJob('anything', payload)).payload).toEqual(stored);
  });
});
