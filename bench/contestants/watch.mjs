// Asks the database itself whether work is left; every contestant on PostgreSQL is asked the same way.
import pg from 'pg';

/** `rows`: what is due and not settled, from `from` on. */
export async function watchWith(url, rows) {
  const client = new pg.Client(url);
  await client.connect();
  const first = async (text) => (await client.query(text)).rows[0].answer;
  return {
    unfinished: () => first(`select exists (select ${rows}) as answer`),
    count: () => first(`select count(*)::int as answer ${rows}`),
    close: () => client.end(),
  };
}
