// How long the jobs of workers that died stay locked, while there is a database and a worker to rescue them.
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';

const LOOK_MS = 100;

export class Rescues {
  longestMs = 0;
  #watched = new Map();
  #fleet;
  #cluster;
  #isHealthy;
  #lastTrouble = performance.now();
  #over = false;
  #watching;

  /** `isHealthy` tells whether no fault of the database is in place. */
  constructor(fleet, cluster, isHealthy) {
    this.#fleet = fleet;
    this.#cluster = cluster;
    this.#isHealthy = isHealthy;
  }

  start() {
    this.#watching = this.#watch();
  }

  async stop() {
    this.#over = true;
    await this.#watching;
  }

  /** From now on the worker is dead, as long as `stillDead` says so. */
  watch(workerId, stillDead = () => true) {
    this.#watched.set(workerId, { stillDead, healthyMs: 0 });
  }

  /** A function that tells whether the database has been well ever since. */
  calmSince() {
    const startedAt = performance.now();
    return () => this.#isHealthy() && this.#lastTrouble < startedAt;
  }

  async lockedBy(workerId) {
    return this.#cluster.withAdmin(async (admin) => {
      const { rows } = await admin.query(
        'select from jobs.jobs j join jobs.workers w on w.id = j.locked_by where w.label = $1',
        [workerId],
      );
      return rows.length;
    });
  }

  async #watch() {
    let lastLook = performance.now();
    let client;
    while (!this.#over) {
      await sleep(LOOK_MS);
      const now = performance.now();
      const elapsed = now - lastLook;
      lastLook = now;
      if (!this.#isHealthy()) this.#lastTrouble = now;
      try {
        client ??= await this.#connect(() => (client = undefined));
        const { rows } = await client.query(
          `select distinct w.label from jobs.jobs j join jobs.workers w on w.id = j.locked_by where w.label = any($1)`,
          [[...this.#watched.keys()]],
        );
        const locked = new Set(rows.map((row) => row.label));
        for (const [id, watched] of this.#watched) {
          // It may come back under its own name: what it holds from then on is no matter of rescue.
          if (!locked.has(id) || !watched.stillDead()) this.#watched.delete(id);
          else if (this.#isHealthy() && this.#fleet.active.length > 0) watched.healthyMs += elapsed;
          this.longestMs = Math.max(this.longestMs, watched.healthyMs);
        }
      } catch {
        this.#lastTrouble = now;
        void client?.end().catch(() => undefined);
        client = undefined;
      }
    }
    await client?.end().catch(() => undefined);
  }

  async #connect(onEnd) {
    const client = new pg.Client({ connectionString: this.#cluster.url(), query_timeout: 2_000 });
    client.on('error', onEnd);
    client.on('end', onEnd);
    await client.connect();
    return client;
  }
}
