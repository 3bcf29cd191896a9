// One PostgreSQL for the whole run; each spec makes a database of its own in it.
import { randomBytes } from 'node:crypto';
import { startPostgres } from './postgres.mjs';

export default async function setUp() {
  const startedAt = performance.now();
  const postgres = await startPostgres();
  globalThis.testPostgres = postgres;
  process.env.MILLRACE_TEST_URL = postgres.url; // workers inherit it
  process.env.MILLRACE_TEST_TEMPLATE = `template_${randomBytes(6).toString('hex')}`; // template.ts makes it
  console.log(`\n${postgres.kind} PostgreSQL, ready in ${Math.round(performance.now() - startedAt)} ms`);
}
