// Measures the storage shapes: node bench/shapes/run.mjs [--quick] [--rounds N] [--main]
// `--main` leaves the side lines out; what result.json holds of them stays there.
import fs from 'node:fs';
import os from 'node:os';
import { parseArgs } from 'node:util';
import pg from 'pg';
import { planCell, runCell } from './cell.mjs';
import { mainCells, planCells, sideCells } from './matrix.mjs';
import { startPostgres } from './postgres.mjs';
import { mainTable, planTable, sideTable, summarise } from './report.mjs';

const { values: options } = parseArgs({
  options: {
    quick: { type: 'boolean', default: false },
    main: { type: 'boolean', default: false },
    rounds: { type: 'string' },
  },
});
const rounds = Number(options.rounds ?? (options.quick ? 1 : 3));
const scale = options.quick ? 0.1 : 1;

const resultFile = new URL('result.json', import.meta.url);

const server = await startPostgres();
try {
  const version = await prepare(server);
  const facts = machine(version);
  const main = await runRounds(mainCells);
  const side = options.main ? readSide() : await runSide();
  print({ machine: facts, main, ...side });
} finally {
  await server.stop();
}

/** Shapes take turns within a round, each round from another start, so that a busy minute hits them alike. */
async function runRounds(cells) {
  const results = cells.map(() => []);
  for (let round = 0; round < rounds; round++) {
    for (let i = 0; i < cells.length; i++) {
      const at = (i + round * 2) % cells.length;
      const cell = cells[at];
      results[at].push(await runCell(server, { ...cell, jobs: Math.ceil(cell.jobs * scale) }));
      process.stderr.write('.');
    }
  }
  process.stderr.write('\n');
  return cells.map((cell, i) => ({ ...cell, figures: summarise(results[i]) }));
}

async function runSide() {
  const plans = [];
  for (const cell of planCells) plans.push({ ...cell, plan: await planCell(server, cell) });
  const side = {};
  for (const [title, cells] of Object.entries(sideCells)) side[title] = await runRounds(cells);
  return { side, plans };
}

function readSide() {
  if (!fs.existsSync(resultFile)) return { side: {}, plans: [] };
  const { side, plans } = JSON.parse(fs.readFileSync(resultFile, 'utf8'));
  return { side, plans };
}

async function prepare({ host }) {
  const client = new pg.Client({ host, user: 'postgres', database: 'postgres' });
  await client.connect();
  await client.query('create extension pg_walinspect');
  const { rows } = await client.query('show server_version');
  await client.end();
  return rows[0].server_version;
}

function machine(postgres) {
  const [cpu] = os.cpus();
  return {
    postgres,
    node: process.version,
    cpu: cpu.model,
    cores: os.cpus().length,
    load: os.loadavg(),
    rounds,
    scale,
  };
}

function print(result) {
  const { machine, plans, main, side } = result;
  const withoutStatements = (key, value) => (key === 'shape' ? undefined : value);
  fs.writeFileSync(resultFile, `${JSON.stringify(result, withoutStatements, 2)}\n`);
  console.log(JSON.stringify(machine));
  console.log(`\n${mainTable(main)}`);
  if (options.main) return;
  for (const [title, rows] of Object.entries(side)) console.log(`\n${sideTable(title, rows)}`);
  console.log(`\n${planTable(plans)}`);
}
