// An application with an embedded PostgreSQL, for specs that end it in every way.
// Usage: node program.mjs LIBRARY BEHAVIOUR [OPTIONS]; prints JSON lines.
import pg from 'pg';

const [library, behaviour, options = '{}'] = process.argv.slice(2);
const tell = (news) => process.stdout.write(`${JSON.stringify(news)}\n`);
const QUERIES = 5;

/** What an application does between the signal and its end: it needs new connections as well as time. */
async function drain(url) {
  for (let done = 0; done < QUERIES; done += 1) {
    const client = new pg.Client(url);
    await client.connect();
    await client.query('select pg_sleep(0.03)');
    await client.end();
  }
  tell({ drained: QUERIES });
  process.exit(0);
}

const BEHAVIOURS = {
  wait: () => setInterval(() => undefined, 60_000),
  drain: ({ url }) => {
    setInterval(() => undefined, 60_000);
    for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => void drain(url));
  },
  exit: () => setImmediate(() => process.exit(3)),
  throw: () => {
    setImmediate(() => {
      throw new Error('on purpose');
    });
  },
  end: () => undefined,
};

async function main() {
  const { startEmbeddedPostgres } = await import(library);
  try {
    const postgres = await startEmbeddedPostgres(JSON.parse(options));
    const { url, port, pid } = postgres;
    BEHAVIOURS[behaviour](postgres);
    tell({ url, port, pid });
  } catch ({ name, code, reason, message }) {
    tell({ name, code, reason, message });
    process.exitCode = 1;
  }
}

void main();
