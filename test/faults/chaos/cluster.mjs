// A PostgreSQL primary and its synchronous standby, from the embedded binaries: stopped without warning, started again,
// promoted, rebuilt.
import { once } from 'node:events';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { completeBinaries, findBinaries, reachableBinaries } from '../../../lib/embedded/binaries.mjs';
import { createCluster } from '../../../lib/embedded/new-cluster.mjs';
import { startServer, stopServer } from '../../../lib/embedded/server.mjs';
import { giveTo, serverUser } from '../../../lib/embedded/server-user.mjs';

const STANDBY = 'standby';
const SETTINGS = {
  fsync: 'on',
  synchronous_commit: 'on',
  wal_level: 'replica',
  max_connections: 100,
  // A client that vanished silently must not hold rows for ever.
  idle_in_transaction_session_timeout: '4s',
  tcp_keepalives_idle: 2,
  tcp_keepalives_interval: 1,
  tcp_keepalives_count: 2,
  tcp_user_timeout: '4s',
};

export class Cluster {
  #root = fs.mkdtempSync(path.join(os.tmpdir(), 'millrace-chaos-'));
  #user = serverUser();
  #copies = 0;
  #native;
  #primary = null;
  #standby = null;
  #ending = new AbortController();

  get port() {
    return this.#primary.port;
  }

  /** As the superuser, past every proxy. */
  url(port = this.port) {
    return `postgres://postgres@127.0.0.1:${port}/postgres`;
  }

  async start() {
    const found = findBinaries(undefined, [import.meta.url]);
    completeBinaries(found);
    this.#native = reachableBinaries(found, this.#user, () => this.#root);
    fs.chmodSync(this.#root, 0o755);
    giveTo(this.#root, this.#user);
    const folder = path.join(this.#root, 'data-0');
    await createCluster({ ...this.#place(folder), durable: true });
    this.#primary = await this.#launch(folder, 0);
    await this.withAdmin((admin) => admin.query('create role app login; create schema app authorization app'));
    await this.withAdmin((admin) => admin.query('grant create on database postgres to app'));
    await this.buildStandby();
  }

  /** Runs `work` on a connection of its own, to the primary unless told otherwise. */
  async withAdmin(work, port = this.port) {
    const admin = new pg.Client({ connectionString: this.url(port), application_name: 'chaos', query_timeout: 20_000 });
    admin.on('error', () => undefined);
    await admin.connect();
    try {
      return await work(admin);
    } finally {
      await admin.end().catch(() => undefined);
    }
  }

  /** Stops the primary in an orderly way, copies its folder, and starts both, the copy as a standby. */
  async buildStandby() {
    const { folder, port } = this.#primary;
    await stopServer(this.#primary.server, this.#native, folder);
    const copy = path.join(this.#root, `data-${++this.#copies}`);
    fs.cpSync(folder, copy, { recursive: true, verbatimSymlinks: true });
    fs.rmSync(path.join(copy, 'postmaster.pid'), { force: true });
    fs.writeFileSync(path.join(copy, 'standby.signal'), '');
    fs.chmodSync(copy, 0o700);
    giveTo(copy, this.#user);
    this.#primary = await this.#launch(folder, port, { synchronous_standby_names: STANDBY });
    const source = `host=127.0.0.1 port=${port} user=postgres application_name=${STANDBY}`;
    this.#standby = await this.#launch(copy, 0, { primary_conninfo: source, hot_standby: 'on' });
    await this.recovered();
  }

  /** As if the machine had lost its power, and was started again. */
  async crashAndRestart(pauseMs) {
    const { server, folder, port, settings } = this.#primary;
    await kill(server, 'SIGQUIT');
    await sleep(pauseMs);
    this.#primary = await this.#launch(folder, port, settings);
  }

  /** The primary dies for good, and the standby takes over, on a port of its own. */
  async promote() {
    await kill(this.#primary.server, 'SIGQUIT');
    const { folder, port, server } = this.#standby;
    await this.withAdmin((admin) => admin.query('select pg_promote(true, 60)'), port);
    fs.rmSync(this.#primary.folder, { recursive: true, force: true });
    this.#primary = { folder, port, server, settings: {} };
    this.#standby = null;
  }

  /** Resolves when the primary answers, and its standby follows. */
  async recovered() {
    for (;;) {
      const standbys = await this.withAdmin((admin) =>
        admin.query(`select from pg_stat_replication where sync_state = 'sync'`),
      ).then(
        ({ rowCount }) => rowCount,
        () => -1,
      );
      if (standbys >= (this.#standby ? 1 : 0)) return;
      await sleep(50);
    }
  }

  get hasStandby() {
    return this.#standby !== null;
  }

  async stop() {
    this.#ending.abort();
    for (const node of [this.#standby, this.#primary]) if (node) await kill(node.server, 'SIGQUIT');
    fs.rmSync(this.#root, { recursive: true, force: true });
  }

  async #launch(folder, port, settings = {}) {
    const cluster = { ...this.#place(folder), settings: { ...SETTINGS, ...settings } };
    return { ...(await startServer(cluster, port)), folder, settings };
  }

  #place(folder) {
    return { native: this.#native, folder, user: this.#user, signal: this.#ending.signal };
  }
}

async function kill(server, signal) {
  if (server.exitCode !== null || server.signalCode !== null) return;
  const exited = once(server, 'exit');
  server.kill(signal);
  await exited;
}
