// Finds a PostgreSQL for the tests. MILLRACE_TEST_PG: a postgres:// URL, `container`, `embedded`, or unset (a container
// if an engine answers, else embedded). MILLRACE_TEST_PG_NATIVE: binaries of another version for the embedded one.
// Plain JavaScript because Jest loads a global setup in TypeScript as CommonJS, which cannot resolve './x.js' to a .ts.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { statfsSync } from 'node:fs';
import { resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

const ENGINE_TIMEOUT_MS = 5_000;
const SETTINGS = { fsync: 'off', synchronous_commit: 'off', full_page_writes: 'off', max_connections: '300' };

export async function startPostgres(mode = process.env.MILLRACE_TEST_PG || 'auto') {
  if (/^postgres(ql)?:/.test(mode)) return { kind: 'external', url: mode, stop: async () => {} };
  if (!['auto', 'container', 'embedded'].includes(mode)) {
    throw new Error(`Expected MILLRACE_TEST_PG to be a postgres:// URL, container or embedded, got "${mode}".`);
  }
  if (mode !== 'embedded') {
    try {
      return await startContainer();
    } catch (error) {
      if (mode === 'container') throw error;
      console.warn(`no container engine (${error.message}): using the embedded PostgreSQL`);
    }
  }
  return startEmbedded();
}

async function startContainer() {
  const { getContainerRuntimeClient } = await import('testcontainers');
  await within(ENGINE_TIMEOUT_MS, getContainerRuntimeClient()); // rejects within ms where no engine answers
  const { PostgreSqlContainer } = await import('@testcontainers/postgresql');
  const flags = Object.entries(SETTINGS).flatMap(([name, value]) => ['-c', `${name}=${value}`]);
  const image = process.env.MILLRACE_TEST_PG_IMAGE ?? 'postgres:18-alpine';
  const container = await new PostgreSqlContainer(image).withCommand(['postgres', ...flags]).start();
  return { kind: 'container', url: container.getConnectionUri(), stop: async () => void (await container.stop()) };
}

function within(ms, work) {
  const silence = new Promise((_, reject) => {
    setTimeout(() => reject(new Error(`no answer within ${ms} ms`)), ms).unref();
  });
  return Promise.race([work, silence]);
}

const MEMORY = '/dev/shm';
const MEMORY_NEEDED = 4 * 2 ** 30;

/** Specs make and drop hundreds of databases of hundreds of files: in memory, where there is enough, that costs a fifth. */
function dataInMemory() {
  try {
    const { bavail, bsize } = statfsSync(MEMORY);
    return bavail * bsize > MEMORY_NEEDED ? { TMPDIR: MEMORY } : {};
  } catch {
    return {}; // there is no such folder
  }
}

/** The library's supervisor, without lib/embedded.ts, which Node cannot run from the sources. */
async function startEmbedded() {
  const script = fileURLToPath(new URL('../../lib/embedded/supervisor.mjs', import.meta.url));
  const native = process.env.MILLRACE_TEST_PG_NATIVE;
  const order = { settings: SETTINGS, resolveFrom: [script], binaries: native && resolve(native) };
  const { NODE_OPTIONS: _, ...env } = process.env;
  const supervisor = spawn(process.execPath, [script, JSON.stringify(order)], {
    detached: true,
    env: { ...env, ...dataInMemory() },
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  const exited = once(supervisor, 'exit');
  const [line] = await Promise.race([once(createInterface(supervisor.stdout), 'line'), exited.then(() => ['{}'])]);
  const { host, port, message } = JSON.parse(line);
  if (!host) throw new Error(message ?? 'The supervisor ended without a word.');
  for (const handle of [supervisor, supervisor.stdin, supervisor.stdout]) handle.unref();
  const stop = async () => {
    supervisor.ref();
    supervisor.stdin.end();
    await exited;
  };
  return { kind: 'embedded', url: `postgres://postgres@${host}:${port}/postgres`, stop };
}
