// How fast one process empties a full queue: Millrace with default options and full history beside a hand-written
// ceiling (claim by update, batched delete, no history). Interleaved rounds on one PostgreSQL, fully durable.
// Usage: node drain.mjs [--jobs 100000] [--rounds 3]
import { spawn } from 'node:child_process';
import { cpus } from 'node:os';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { startEmbeddedPostgres } from '../dist/embedded.js';

const { values } = parseArgs({ options: { jobs: { type: 'string' }, rounds: { type: 'string' } } });
const jobs = Number(values.jobs ?? 100_000);
const rounds = Number(values.rounds ?? 3);
const contestants = ['millrace', 'ceiling'];

const median = (numbers) => numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length / 2)];

/** Runs one contestant in a process of its own; resolves with what it measured. */
function run(name, url) {
  const script = fileURLToPath(new URL(`contestants/${name}.mjs`, import.meta.url));
  const child = spawn(process.execPath, [script, url, String(jobs)], { stdio: ['ignore', 'pipe', 'inherit'] });
  let output = '';
  child.stdout.on('data', (data) => (output += data));
  return new Promise((resolve, reject) => {
    child.on('exit', (code) =>
      code === 0 ? resolve(JSON.parse(output)) : reject(new Error(`${name} ended with ${code}`)),
    );
  });
}

const postgres = await startEmbeddedPostgres({
  settings: {
    fsync: 'on',
    synchronous_commit: 'on',
    full_page_writes: 'on',
    shared_buffers: '512MB',
    max_wal_size: '8GB',
  },
});
try {
  console.log(`${cpus().length} cores, Node ${process.version}, ${jobs} no-op jobs, concurrency 10, ${rounds} rounds`);
  const rates = Object.fromEntries(contestants.map((name) => [name, []]));
  for (let round = 0; round < rounds; round++) {
    for (const name of contestants) {
      const { seconds } = await run(name, postgres.url);
      rates[name].push(jobs / seconds);
    }
  }
  console.log('| contestant | jobs/s, median | all rounds |\n| --- | ---: | --- |');
  for (const name of contestants) {
    const all = rates[name].map((rate) => Math.round(rate));
    console.log(`| ${name} | ${Math.round(median(rates[name]))} | ${all.join(', ')} |`);
  }
  console.log(`ratio millrace / ceiling: ${(median(rates.millrace) / median(rates.ceiling)).toFixed(2)}`);
} finally {
  await postgres.stop();
}
