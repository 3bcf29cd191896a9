// What bench/fairness.mjs works with: empty databases, many jobs of many tenants at once, and claims as a pool makes them.
import pg from 'pg';
import { createJobManager, createWorkerPool } from '../dist/index.js';
import { startEmbeddedPostgres } from '../dist/embedded.js';
import { LaneMemory } from '../dist/manager/lane.memory.js';
import { ClaimScan } from '../dist/worker/claim.scan.js';
import { postgresSettings } from './arena.mjs';
import { Meter } from './meter.mjs';

const HOUR_MS = 3_600_000;
const POLL_MS = 2_000;
const MOST_KIB = 65_536;

export const pause = (ms) => new Promise((resolve) => void setTimeout(resolve, ms));
export const quantile = (list, q) =>
  list.toSorted((a, b) => a - b)[Math.min(list.length - 1, Math.floor(list.length * q))];
export const median = (list) => quantile(list, 0.5);
/** 1: all have got the same; 1/n: one has got everything. */
export const jainIndex = (shares) =>
  shares.reduce((sum, x) => sum + x, 0) ** 2 / (shares.length * shares.reduce((sum, x) => sum + x * x, 0));

/** A server of its own, and databases in it with the library's schema. */
export class Stage {
  #databases = 0;

  static async start() {
    const stage = new Stage();
    stage.server = await startEmbeddedPostgres({ settings: postgresSettings });
    stage.admin = new pg.Client(stage.server.url);
    await stage.admin.connect();
    stage.version = (await stage.admin.query('show server_version')).rows[0].server_version;
    stage.meter = new Meter(stage.server.pid, null);
    return stage;
  }

  /** `run` gets an empty database, or a copy of what `prepare` has made. */
  async within(run, template = 'template1') {
    const db = await this.#open(template);
    try {
      return await run(db);
    } finally {
      await this.#close(db);
      await this.drop(db.name);
    }
  }

  /** The name of a database that can be copied. */
  async prepare(load) {
    const db = await this.#open('template1');
    await load(db);
    await this.#close(db);
    return db.name;
  }

  /** Another session in a transaction that keeps its snapshot. */
  async hold(url) {
    const client = new pg.Client(url);
    await client.connect();
    await client.query('begin isolation level repeatable read');
    await client.query('select 1');
    return client;
  }

  async drop(name) {
    await this.admin.query(`drop database ${name} with (force)`);
  }

  async #open(template) {
    const name = `fairness_${++this.#databases}`;
    await this.admin.query(`create database ${name} template ${template}`);
    const url = this.server.url.replace(/[^/]*$/, name);
    const jobs = await createJobManager({ connection: url });
    const sql = new pg.Client(url);
    await sql.connect();
    return { name, url, jobs, sql };
  }

  async #close({ jobs, sql }) {
    await sql.end();
    await jobs.close();
  }

  async stop() {
    await this.admin.end();
    await this.server.stop();
  }
}

/** Inserts as an add of so many jobs does, in one statement. `partition`: an SQL expression of n, from 0; null: plain jobs. */
export async function fill(sql, count, { queue = null, partition = 'null' } = {}) {
  const { rows } = await sql.query(
    `select coalesce(max(substr(id::text, 25)::text), '000000000000') as last from jobs.job_bodies`,
  );
  const first = parseInt(rows[0].last, 16) + 1;
  await sql.query(
    `with given as materialized (
      select n, (lpad(to_hex((date_part('epoch', now()) * 1000)::bigint), 12, '0') || '70008000' || lpad(to_hex($2 + n), 12, '0'))::uuid as id,
        now() - interval '1 second' + n * interval '1 us' as run_at, $3::text as queue, ${partition} as partition
      from generate_series(0, $1::bigint - 1) n
    ),
    bodies as (
      insert into jobs.job_bodies (id, run_at, priority, max_attempts, task, payload, queue, partition)
      select id, run_at, 0, 5, 'serve', json_build_object('n', n, 'tenant', partition), queue, partition from given
    )
    insert into jobs.jobs (id, run_at, priority, max_attempts, task, queue, partition, lane)
    select id, run_at, 0, 5, 'serve', queue, partition, queue || E'\\x1f' || coalesce(partition, '') || E'\\x1f' from given`,
    [count, first, queue],
  );
}

export const settle = async (sql) => {
  await sql.query('vacuum analyze jobs.jobs, jobs.job_bodies');
  await sql.query('checkpoint');
};

/** `serve` is the handler. Starts, and hands back the pool. */
export async function work(jobs, serve, options = {}) {
  const pool = createWorkerPool({
    jobs,
    tasks: { serve },
    options: { concurrency: 10, pollIntervalMs: POLL_MS, ...options },
  });
  await pool.start();
  return pool;
}

/** Claims and completes as a pool does, one claim after the other, so that sizes of claims are known. */
export class Hands {
  #lanes = new LaneMemory(POLL_MS, undefined, true);
  #scan = new ClaimScan();

  constructor(jobs) {
    this.engine = jobs.engine;
    this.claimer = { holder: 'hands', label: 'hands', leaseMs: null };
  }

  static async of({ jobs, sql }) {
    await sql.query(`insert into jobs.workers (id, label, host, pid, concurrency, lease_ms, tasks, environment)
      values ('hands', 'hands', 'host', 1, 10, ${HOUR_MS}, '{serve}', '{}')`);
    return new Hands(jobs);
  }

  get #request() {
    return { ...this.claimer, taskIdentifiers: ['serve'], otherTasks: null, forbiddenFlags: null, worstPriority: null };
  }

  async claimLanes(limit) {
    const memory = this.#lanes.next(limit);
    const look = await this.engine.claims.claimLanes({
      ...this.#request,
      limit,
      memory,
      maxCrashes: null,
      queue: null,
    });
    this.#lanes.learn(look);
    return look.jobs;
  }

  async claimPlain(limit) {
    const startedAt = performance.now();
    const result = await this.engine.claims.claimPlain({
      ...this.#request,
      limit,
      maxKib: MOST_KIB,
      ...this.#scan.next(),
    });
    this.#scan.learn(result, performance.now() - startedAt, limit);
    return result.jobs;
  }

  async complete(jobs) {
    const outcome = { kind: 'completed', result: null };
    const requests = jobs.map((job) => ({ job, outcome, executionTimeMs: 0 }));
    const { results } = await this.engine.settlement.settle(this.claimer, requests);
    for (const { job, hasFreedPlace } of results) if (hasFreedPlace) this.#lanes.noteFreed(job.queue, job.partition);
  }
}
