// Finds a PostgreSQL for the tests. MILLRACE_TEST_PG: a postgres:// URL, `container`, `embedded`, or unset (a container
// if an engine answers, else embedded). MILLRACE_TEST_PG_NATIVE: binaries of another version for the embedded one.
// Plain JavaScript because Jest loads a global setup in TypeScript as CommonJS, which cannot resolve './x.js' to a .ts.
import { superviseCluster } from '../../lib/embedded/supervise.mjs';

const ENGINE_TIMEOUT_MS = 5_000;
const SETTINGS = { fsync: 'off', synchronous_commit: 'off', full_page_writes: 'off', max_connections: '300' };

export async function startPostgres(mode = process.env.MILLRACE_TEST_PG ?? 'auto') {
  if (/^postgres(ql)?:/.test(mode)) return { kind: 'external', url: mode, stop: async () => {} };
  if (mode !== 'embedded') {
    try {
      return await startContainer();
    } catch (error) {
      if (mode === 'container') throw error;
      console.warn(`no container engine (${error.message}): using the embedded PostgreSQL`);
    }
  }
  const cluster = await superviseCluster({ settings: SETTINGS, native: process.env.MILLRACE_TEST_PG_NATIVE });
  return { kind: 'embedded', url: cluster.url, stop: cluster.stop };
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
