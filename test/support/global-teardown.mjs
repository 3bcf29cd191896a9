import pg from 'pg';

export default async function tearDown() {
  await dropTemplate();
  await globalThis.testPostgres?.stop();
}

/** A server that outlives the run keeps nothing of it. */
async function dropTemplate() {
  if (globalThis.testPostgres?.kind !== 'external') return;
  const client = new pg.Client(globalThis.testPostgres.url);
  await client.connect();
  await client.query(`drop database if exists ${process.env.MILLRACE_TEST_TEMPLATE}`);
  await client.end();
}
