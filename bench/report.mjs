// Tables and a chart from results.json. Run as a program, it writes them into docs/benchmarks.md and docs/benchmarks.svg.
import { readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { contestants } from './contestants/index.mjs';

const markers = ['<!-- results: begin -->', '<!-- results: end -->'];

/** Command, machine, versions and sizes of a run, in a few lines. */
export function summary({ command, machine, options }) {
  const { at, cpu, cores, load, node, postgres, redis, packages } = machine;
  const peers = ['graphile-worker', 'pg-boss', 'bullmq', 'pg'].map((name) => `${name} ${packages[name]}`);
  return [
    `${at}, \`${command}\`. ${cores} cores, ${cpu}; load average at the start ${load.join(', ')}. Node ${node}, PostgreSQL ${postgres} (fsync`,
    `and synchronous_commit on), ${redis ? `Redis ${redis}` : 'no Redis'}; ${peers.join(', ')}.`,
    `Sizes: ${options.jobs.toLocaleString('en')} jobs, ${options.rows.toLocaleString('en')} other rows, ${options.seconds} s of adds,`,
    `${options.samples} latency samples, ${options.rounds} rounds.`,
  ].join('\n');
}

/** One table for each case of each measure. Medians; where there were several rounds, the spread behind them. */
export function tables(results) {
  return results.map(({ title, columns, cases }) => section(title, columns, cases)).join('\n\n');
}

function section(title, columns, cases) {
  const one = ({ name, results }) => `**${name}**\n\n${table(columns, results)}`;
  return [`### ${title}`, ...cases.map(one)].join('\n\n');
}

function table(columns, results) {
  const shown = columns.filter(([key]) =>
    Object.values(results)
      .flat()
      .some((figures) => figures[key] != null),
  );
  const head = ['contestant', ...shown.map(([, heading]) => heading)];
  const rows = Object.entries(results).map(([name, rounds]) => [name, ...cells(shown, rounds)]);
  const rule = head.map((_, i) => (i === 0 ? '---' : '---:'));
  return [head, rule, ...rows].map((row) => `| ${row.join(' | ')} |`).join('\n');
}

function cells(columns, rounds) {
  const good = rounds.filter((figures) => figures.failed === undefined);
  if (good.length < rounds.length) {
    const { failed } = rounds.find((figures) => figures.failed);
    return columns.map((_, i) => (i === 0 ? `failed: ${failed}` : ''));
  }
  return columns.map(([key, , step]) =>
    spread(
      good.map((figures) => figures[key]).filter((value) => value != null),
      step,
    ),
  );
}

function spread(values, step) {
  if (values.length === 0) return '–';
  const sorted = values.toSorted((a, b) => a - b);
  const [low, high] = [sorted[0], sorted.at(-1)].map((value) => rounded(value, step));
  return low === high ? low : `${rounded(median(sorted), step)} (${low}–${high})`;
}

const median = (values) => values.toSorted((a, b) => a - b)[values.length >> 1];

/** To the step, or for small values to what three digits show. */
function rounded(value, step) {
  const fine = Math.min(step, 10 ** (Math.floor(Math.log10(Math.abs(value) || 1)) - 1));
  const digits = Math.max(0, Math.ceil(-Math.log10(fine)));
  return (Math.round(value / fine) * fine).toLocaleString('en', { maximumFractionDigits: digits });
}

const charts = [
  ['drain', '1 process', 'Drained jobs per second, one process'],
  ['adds', '50 in parallel', 'Single adds per second, 50 callers'],
];

/** Horizontal bars, one panel for each chart whose measure was run. */
function svg(measures) {
  const panels = charts.flatMap(([measure, name, heading]) => {
    const found = measures[measure]?.cases.find((one) => one.name === name);
    return found ? [{ heading, bars: barsOf(found.results) }] : [];
  });
  let y = 0;
  const drawn = panels.map((panel) => {
    const text = panelAt(panel, y);
    y += 48 + panel.bars.length * 26;
    return text;
  });
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="760" height="${y}" viewBox="0 0 760 ${y}" font-family="sans-serif" font-size="13">`,
    `<rect width="760" height="${y}" fill="#fff"/>`,
    ...drawn,
    '</svg>\n',
  ].join('\n');
}

const barsOf = (results) =>
  Object.entries(results)
    .filter(([, rounds]) => rounds.every(({ failed }) => failed === undefined))
    .map(([name, rounds]) => ({ name, rate: median(rounds.map(({ rate }) => rate)) }));

function panelAt({ heading, bars }, top) {
  const most = Math.max(...bars.map(({ rate }) => rate));
  const lines = bars.map(({ name, rate }, i) => {
    const y = top + 36 + i * 26;
    const width = Math.max(1, (rate / most) * 460);
    const fill = name.startsWith('millrace') ? '#0b6e8f' : '#b5bcc4';
    return (
      `<text x="190" y="${y + 14}" text-anchor="end">${name}</text>` +
      `<rect x="200" y="${y}" width="${width.toFixed(1)}" height="19" fill="${fill}"/>` +
      `<text x="${(206 + width).toFixed(1)}" y="${y + 14}">${rounded(rate, 100)}</text>`
    );
  });
  return [`<text x="10" y="${top + 22}" font-weight="bold">${heading}</text>`, ...lines].join('\n');
}

const keptTable = () =>
  [
    '| contestant | kept of a finished job | jobs at most |',
    '| --- | --- | ---: |',
    ...Object.entries(contestants).map(
      ([name, { kept, most }]) => `| ${name} | ${kept} | ${most?.toLocaleString('en') ?? ''} |`,
    ),
  ].join('\n');

function writeDocs() {
  const results = JSON.parse(readFileSync(new URL('results.json', import.meta.url), 'utf8'));
  const file = new URL('../docs/benchmarks.md', import.meta.url);
  const [before, , after] = readFileSync(file, 'utf8').split(new RegExp(`${markers[0]}|(?=${markers[1]})`));
  const measured = Object.values(results);
  const runs = [...new Set(measured.map(({ run }) => summary(run)))];
  const parts = [...runs, '![Rates](benchmarks.svg)', keptTable(), tables(measured)];
  writeFileSync(file, [`${before}${markers[0]}`, ...parts, after].join('\n\n'));
  writeFileSync(new URL('../docs/benchmarks.svg', import.meta.url), svg(results));
}

if (process.argv[1] === fileURLToPath(import.meta.url)) writeDocs();
