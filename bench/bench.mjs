// Measures Millrace beside hand-written SQL and the field's other queues: see docs/benchmarks.md.
// Usage: node bench.mjs [--full] [--only drain,adds] [--contestants millrace,ceiling] [--rounds 3] [--jobs 50000] …
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import { parseArgs } from 'node:util';
import { node, startServers, withArena } from './arena.mjs';
import { contestants, storeOf } from './contestants/index.mjs';
import { tables, summary } from './report.mjs';

const measureNames = ['drain', 'statistics', 'adds', 'latency', 'tables', 'snapshot', 'kill', 'techniques'];
const { values: given } = parseArgs({
  options: {
    full: { type: 'boolean', default: false },
    only: { type: 'string' },
    contestants: { type: 'string' },
    rounds: { type: 'string' },
    jobs: { type: 'string' },
    rows: { type: 'string' },
    seconds: { type: 'string' },
    samples: { type: 'string' },
    'kill-peers': { type: 'boolean', default: false },
    'redis-fsync': { type: 'string', default: 'everysec' },
  },
});
const sizes = given.full
  ? { rounds: 3, jobs: 100_000, rows: 1_000_000, seconds: 10, samples: 500 }
  : { rounds: 3, jobs: 30_000, rows: 100_000, seconds: 3, samples: 200 };
const options = {
  ...Object.fromEntries(Object.entries(sizes).map(([name, size]) => [name, Number(given[name] ?? size)])),
  killPeers: given['kill-peers'],
};
const only = chosen('only', measureNames);
const measures = Object.fromEntries(
  await Promise.all(only.map(async (name) => [name, await import(`./measures/${name}.mjs`)])),
);

const servers = await startServers({ redisFsync: given['redis-fsync'] });
try {
  const taking = chosen('contestants', Object.keys(contestants)).filter(isPossible);
  const facts = machine();
  const command = ['npm run bench --', ...process.argv.slice(2)].join(' ');
  console.log(summary({ command, machine: facts, options }));
  for (const name of only) {
    const result = { ...(await measureAll(measures[name], taking)), run: { command, machine: facts, options } };
    console.log(`\n${tables([result])}`);
    save(name, result);
  }
} finally {
  await servers.stop();
}

function chosen(option, known) {
  if (given[option] === undefined) return known;
  const names = given[option].split(/,(?! )/);
  const unknown = names.filter((name) => !known.includes(name));
  if (unknown.length === 0) return names;
  throw new Error(`Expected --${option} to be some of ${known.join('; ')}, got ${unknown.join('; ')}.`);
}

function isPossible(name) {
  if (storeOf(name) !== 'redis' || servers.redis !== null) return true;
  console.log(`${name} is left out: there is no redis-server on this machine (Debian: apt-get install redis-server).`);
  return false;
}

/** Contestants take turns within a round, each round from another start, so that a busy minute hits them alike. */
async function measureAll({ title, columns, cases }, names) {
  const all = cases.map((one) => ({
    name: typeof one.name === 'function' ? one.name(options) : one.name,
    run: one.run,
    results: Object.fromEntries(one.contestants(names, options).map((name) => [name, []])),
  }));
  for (let round = 0; round < options.rounds; round++) {
    for (const { run, results } of all) {
      for (const name of rotated(Object.keys(results), round)) results[name].push(await runOnce(name, run));
    }
  }
  process.stderr.write('\n');
  return { title, columns, cases: all.map(({ name, results }) => ({ name, results })) };
}

function rotated(list, by) {
  return list.map((_, i) => list[(i + by) % list.length]);
}

/** A contestant that fails has no figures; its table says why, and the others go on. */
async function runOnce(name, run) {
  process.stderr.write('.');
  try {
    return await withArena(servers, name, (arena) => run(arena, options));
  } catch (error) {
    process.stderr.write(`\n${name}: ${error.stack}\n`);
    return { failed: error.message.split('\n')[0] };
  }
}

function machine() {
  const versions = JSON.parse(readFileSync(new URL('package.json', import.meta.url), 'utf8')).dependencies;
  return {
    at: new Date().toISOString().slice(0, 10),
    cpu: os.cpus()[0].model,
    cores: os.cpus().length,
    load: os.loadavg().map((load) => Number(load.toFixed(2))),
    node: execFileSync(node, ['--version'], { encoding: 'utf8' }).trim(),
    postgres: servers.postgres.version,
    redis: servers.redis && `${servers.redis.version}, appendonly yes, appendfsync ${servers.redis.fsync}`,
    packages: versions,
  };
}

/** Beside the last results of the other measures. */
function save(name, result) {
  const file = new URL('results.json', import.meta.url);
  const results = existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')) : {};
  const all = Object.fromEntries(measureNames.map((one) => [one, one === name ? result : results[one]]));
  writeFileSync(file, `${JSON.stringify(all, null, 2)}\n`);
}
