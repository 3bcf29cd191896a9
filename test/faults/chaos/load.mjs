// What is enqueued during a chaos run, and what the enqueuer was told about it.
import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';

const CLIENTS = 4;
const LINES = 4;
const KEYS = 6;
const PARTITIONS = 4;
const WINDOWS = 3;
const WINDOW_MS = 1_000;

/** How often each kind of call is made. */
const CALLS = [
  { name: 'single', weight: 40 },
  { name: 'batch', weight: 8 },
  { name: 'committed', weight: 14 },
  { name: 'rolledBack', weight: 6 },
  { name: 'family', weight: 5 },
  { name: 'keyed', weight: 8 },
  { name: 'early', weight: 6 },
  { name: 'throttled', weight: 8 },
];

/** How often each task is chosen for a job of its own. */
const TASKS = [
  { task: 'plain', weight: 30 },
  { task: 'transactional', weight: 22 },
  { task: 'in-line', weight: 18 },
  { task: 'limited', weight: 12 },
  { task: 'in-partition', weight: 12 },
  { task: 'batched', weight: 16 },
  { task: 'batched-transactional', weight: 12 },
  { task: 'pausable', weight: 10 },
  { task: 'failing', weight: 5 },
  { task: 'snoozing', weight: 4 },
  { task: 'partial', weight: 4 },
  { task: 'steps', weight: 4 },
  { task: 'slow', weight: 3 },
  { task: 'throws-text', weight: 1 },
  { task: 'throws-cycle', weight: 1 },
  { task: 'never-ends', weight: 0.5 },
  { task: 'ends-late', weight: 0.5 },
  { task: 'huge-result', weight: 0.3 },
  { task: 'odd-result', weight: 0.5 },
  { task: 'blocks', weight: 0.1 },
  { task: 'exits', weight: 0.1 },
  { task: 'fails-for-good', weight: 1 },
];

const PAUSABLE = { task: 'pausable' };

/** Tasks that may end exhausted, without an effect. */
export const DOOMED = ['exits', 'fails-for-good'];

export class Load {
  /** Acknowledged: the task by job id. Held by the process that is never killed. */
  acknowledged = new Map();
  /** The calls with a job key: { jobKey, version, from, until }, in ms. `until` is null where it is not known if it went through. */
  keyedCalls = [];
  /** Calls that ended in an error: whether their jobs exist is not known. */
  unknown = 0;
  rolledBack = 0;
  /** Pauses whose beginning is known. */
  pauses = 0;
  #jobs;
  #pool;
  #random;
  #clients = [];
  #over = false;
  #version = 0;

  constructor(jobs, pool, random) {
    this.#jobs = jobs;
    this.#pool = pool;
    this.#random = random;
  }

  start() {
    this.#clients = [...Array.from({ length: CLIENTS }, () => this.#client()), this.#operator()];
  }

  /** Resolves when the last call has ended. */
  async stop() {
    this.#over = true;
    await Promise.all(this.#clients);
  }

  async #client() {
    while (!this.#over) {
      const { name } = this.#random.weighted(CALLS);
      try {
        await this[`_${name}`]();
        await sleep(this.#random.between(10, 60));
      } catch (error) {
        if (error.code?.startsWith('42') || error instanceof TypeError) throw error; // a mistake of this program
        this.unknown++;
        await sleep(this.#random.between(100, 300));
      }
    }
  }

  /** Pauses the task `pausable` now and then. A pause is noted once its call has resolved, its end before it is resumed. */
  async #operator() {
    while (!this.#over) {
      await sleep(this.#random.between(500, 3_000));
      const holds = await this.#jobs.pause(PAUSABLE, { reason: 'chaos', by: 'load' }).then(
        () => true,
        () => false,
      );
      const noted = holds && (await this.#tryQuery('insert into app.pauses default values'));
      if (noted) this.pauses++;
      await sleep(this.#random.between(100, 1_500));
      const end = 'update app.pauses set ended_at = clock_timestamp() where ended_at is null';
      await this.#persist(() => this.#pool.query(end));
      await this.#persist(() => this.#jobs.resume(PAUSABLE, { by: 'load' }));
    }
  }

  async #tryQuery(text) {
    return this.#pool.query(text).then(
      () => true,
      () => false,
    );
  }

  async #persist(work) {
    for (;;) {
      try {
        return await work();
      } catch {
        await sleep(200);
      }
    }
  }

  #know({ id, task }) {
    this.acknowledged.set(id, task);
    return id;
  }

  /** A task with what its jobs need. */
  #spec() {
    const { task } = this.#random.weighted(TASKS);
    const { pick, between } = this.#random;
    return {
      task,
      payload: task === 'failing' ? { times: pick([1, 2, 3]) } : { text: "'; drop table jobs; --" },
      priority: pick([-5, 0, 0, 0, 10]),
      ...(task === 'in-line' && { queue: `line-${Math.floor(between(0, LINES))}` }),
      ...(task === 'limited' && { rateLimitKey: 'calls' }),
      ...(task === 'in-partition' && {
        queue: 'in-partitions',
        partition: `part-${Math.floor(between(0, PARTITIONS))}`,
      }),
      ...(task === 'exits' && { maxAttempts: 2 }),
    };
  }

  async _single() {
    const { task, payload, ...options } = this.#spec();
    this.#know(await this.#jobs.addJob(task, payload, options));
  }

  async _batch() {
    const specs = Array.from({ length: Math.ceil(this.#random.between(1, 40)) }, () => this.#spec());
    for (const job of await this.#jobs.addJobs(specs)) this.#know(job);
  }

  async _committed() {
    const job = await this.#transaction('commit', async (client) => {
      await client.query('insert into app.orders (id) values ($1)', [randomUUID()]);
      return this.#jobs.addJob('transactional', {}, { manager: client });
    });
    this.#know(job);
  }

  async _rolledBack() {
    await this.#transaction('rollback', (client) => this.#jobs.addJob('never', {}, { manager: client }));
    this.rolledBack++;
  }

  async _family() {
    const specs = [1, 2].map(() => ({ task: 'plain', payload: {} }));
    const parents = (await this.#jobs.addJobs(specs)).map((job) => this.#know(job));
    this.#know(await this.#jobs.addJob('child', { parents }, { dependsOn: parents }));
  }

  async _keyed() {
    const jobKey = `key-${Math.floor(this.#random.between(0, KEYS))}`;
    const version = ++this.#version;
    const delayMs = this.#random.pick([0, 0, 500]);
    const call = { jobKey, version, from: performance.now(), until: null };
    this.keyedCalls.push(call);
    await this.#jobs.addJob('keyed', { jobKey, version }, { jobKey, delayMs });
    call.until = performance.now();
  }

  /** Whether it is new or not: the job of its window runs. */
  async _throttled() {
    const key = `window-${Math.floor(this.#random.between(0, WINDOWS))}`;
    this.#know(await this.#jobs.addJob('throttled', {}, { throttle: { key, ms: WINDOW_MS } }));
  }

  async _early() {
    const runAt = new Date(Date.now() + this.#random.between(300, 5_000));
    this.#know(await this.#jobs.addJob('early', { notBefore: runAt.toISOString() }, { runAt }));
  }

  async #transaction(end, work) {
    const client = await this.#pool.connect();
    let failure;
    try {
      await client.query('begin');
      const result = await work(client);
      await client.query(end);
      return result;
    } catch (error) {
      failure = error;
      throw error;
    } finally {
      client.release(failure);
    }
  }
}
