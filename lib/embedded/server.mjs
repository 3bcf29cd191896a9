// @ts-check
// The server process: its port, its start up to the first possible connection, its end.
import { spawn, spawnSync } from 'node:child_process';
import net from 'node:net';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { codeOf, messageOf, program } from './binaries.mjs';
import { runningServer } from './data-folder.mjs';
import { serverEnvironment } from './new-cluster.mjs';
import { Refusal } from './refusal.mjs';
import { idsOf } from './server-user.mjs';

/**
 * @typedef {object} Cluster
 * @property {string} native
 * @property {string} folder
 * @property {import('./server-user.mjs').ServerUser | null} user
 * @property {Record<string, string | number | boolean>} settings
 * @property {AbortSignal} signal
 *
 * @typedef {import('node:child_process').ChildProcess} Server
 */

export const HOST = '127.0.0.1';
const START_TIMEOUT_MS = 120_000;
const FAST_STOP_MS = 10_000;
const PORT_RELEASE_MS = 2_000;
const ORPHANS_MS = 5_000;
const POLL_MS = 10;
const LOG_CHARS = 16_384;
const FREE_PORT_TRIES = 5;

/**
 * Waits a moment for a port that a predecessor is about to release.
 * @param {number} port
 * @param {AbortSignal} signal
 */
export async function waitForPort(port, signal) {
  const startedAt = Date.now();
  for (;;) {
    try {
      return await bind(port);
    } catch (error) {
      if (codeOf(error) !== 'EADDRINUSE' || Date.now() - startedAt > PORT_RELEASE_MS) {
        throw portTaken(port, messageOf(error));
      }
    }
    await sleep(POLL_MS, undefined, { signal });
  }
}

/**
 * Binds a port and releases it again.
 * @param {number} port 0: any free one
 * @returns {Promise<number>}
 */
function bind(port) {
  return new Promise((resolve, reject) => {
    const probe = net.createServer().once('error', reject);
    probe.listen(port, HOST, () => {
      const address = /** @type {net.AddressInfo} */ (probe.address());
      probe.close(() => resolve(address.port));
    });
  });
}

/**
 * @param {number} port
 * @param {string} reason
 */
const portTaken = (port, reason) =>
  new Refusal(
    'PORT_TAKEN',
    `Expected port ${port} on ${HOST} to be free, got: ${reason}. Stop the program that listens there, choose another ` +
      'port, or leave `port` out for a free one.',
  );

/**
 * Starts the server; resolves when it accepts connections.
 * @param {Cluster} cluster
 * @param {number} port 0: any free one
 * @returns {Promise<{ server: Server, port: number }>}
 */
export async function startServer(cluster, port) {
  const startedAt = Date.now();
  for (let attempt = 1; ; attempt += 1) {
    const chosen = port || (await bind(0));
    try {
      return { server: await launch(cluster, chosen), port: chosen };
    } catch (error) {
      // Another process took the free port in between, or children of a killed server are about to end.
      const retake =
        port === 0 && attempt < FREE_PORT_TRIES && error instanceof Refusal && error.reason === 'PORT_TAKEN';
      const orphans = /shared memory block/.test(messageOf(error)) && Date.now() - startedAt < ORPHANS_MS;
      if (!retake && !orphans) throw error;
      await sleep(POLL_MS, undefined, { signal: cluster.signal });
    }
  }
}

/**
 * @param {Cluster} cluster
 * @param {number} port
 */
async function launch({ native, folder, user, settings, signal }, port) {
  // Last ones win: no setting and no file in the data folder opens the server, which asks for no password.
  const fixed = { listen_addresses: HOST, unix_socket_directories: '', port };
  const flags = Object.entries({ ...settings, ...fixed }).flatMap(([name, value]) => ['-c', `${name}=${value}`]);
  const server = spawn(program(native, 'postgres'), ['-D', folder, ...flags], {
    ...idsOf(user),
    cwd: path.parse(folder).root,
    env: serverEnvironment(),
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  let log = '';
  server.on('error', (error) => (log += error.message));
  server.stderr.on('data', (text) => (log = (log + text).slice(-LOG_CHARS)));
  const closed = new Promise((resolve) => server.once('close', resolve));
  try {
    await ready(server, folder, signal);
  } catch (error) {
    await stopServer(server, native, folder);
    throw error;
  }
  if (!hasEnded(server)) return server;
  await closed; // the whole log is there
  throw refusalFrom(log, port, folder, settings);
}

/**
 * Resolves when the server is ready or has ended. postmaster.pid tells, whatever is logged in whatever language to
 * wherever.
 * @param {Server} server
 * @param {string} folder
 * @param {AbortSignal} signal
 */
async function ready(server, folder, signal) {
  const deadline = Date.now() + START_TIMEOUT_MS;
  while (!hasEnded(server)) {
    const running = runningServer(folder);
    if (running?.pid === server.pid && running?.status === 'ready') return;
    if (Date.now() > deadline) {
      throw new Refusal('START_FAILED', `Expected PostgreSQL to be ready within ${START_TIMEOUT_MS / 1_000} s.`);
    }
    await sleep(POLL_MS, undefined, { signal });
  }
}

/** @param {Server} server */
const hasEnded = ({ pid, exitCode, signalCode }) => pid === undefined || exitCode !== null || signalCode !== null;

/**
 * @param {string} log
 * @param {number} port
 * @param {string} folder
 * @param {Record<string, unknown>} settings
 */
function refusalFrom(log, port, folder, settings) {
  const said = reasonIn(log);
  if (/could not bind|could not create any TCP\/IP sockets/.test(log)) return portTaken(port, said);
  if (/lock file ".*" already exists|pre-existing shared memory block/.test(log)) {
    return new Refusal('DATA_DIR_IN_USE', `Expected ${folder} to be unused, but PostgreSQL says: ${said}`);
  }
  const [, name] = /parameter "([^"]+)"/.exec(said) ?? [];
  if (name !== undefined && name in settings) {
    const given = `settings.${name} = ${JSON.stringify(settings[name])}`;
    return new Refusal('SETTING_REFUSED', `Expected PostgreSQL to accept ${given}, but it says: ${said}`);
  }
  return new Refusal('START_FAILED', `Expected PostgreSQL to start, but it says: ${said}`);
}

/** @param {string} log */
function reasonIn(log) {
  const lines = log.trim().split('\n');
  const first = lines.findIndex((line) => /\b(FATAL|PANIC|ERROR|WARNING):/.test(line));
  const told = lines.slice(Math.max(first, 0)).filter((line) => !/\bLOG: {2}database system is shut down/.test(line));
  return told.slice(0, 6).join(' ') || 'nothing';
}

/**
 * Ends sessions and writes the data ("fast"). If that takes too long, stops at once ("immediate").
 * @param {Server} server
 * @param {string} native
 * @param {string} folder
 */
export async function stopServer(server, native, folder) {
  if (hasEnded(server)) return;
  const exited = new Promise((resolve) => server.once('exit', resolve));
  if (process.platform === 'win32') spawnSync(program(native, 'pg_ctl'), ['stop', '-D', folder, '-m', 'fast']);
  else server.kill('SIGINT');
  const impatience = setTimeout(() => server.kill('SIGQUIT'), FAST_STOP_MS);
  await exited;
  clearTimeout(impatience);
}
