// Medians of the rounds, as markdown; and the best rates, because what disturbs a round only slows it down.

export const median = (values) => values.toSorted((a, b) => a - b)[values.length >> 1];

/** One line of figures for a cell that was run `results.length` times. */
export function summarise(results) {
  const of = (read) => median(results.map(read));
  const best = (read) => Math.max(...results.map(read));
  return {
    addRate: of((r) => r.add.rate),
    drainRate: of((r) => r.work.rate),
    bestAddRate: best((r) => r.add.rate),
    bestDrainRate: best((r) => r.work.rate),
    addCpu: of((r) => r.add.cpu),
    workCpu: of((r) => r.work.cpu),
    addWal: of((r) => r.add.wal),
    workWal: of((r) => r.work.wal),
    wal: of((r) => r.add.wal + r.work.wal),
    images: of((r) => r.add.images + r.work.images),
    hot: of((r) => r.work.hot),
    liveMb: of((r) => r.liveBytes) / 1e6,
    keptMb: of((r) => r.keptBytes) / 1e6,
  };
}

const columns = {
  'add/s': (s) => round(s.addRate, 100),
  'drain/s': (s) => round(s.drainRate, 100),
  'best add/s': (s) => round(s.bestAddRate, 100),
  'best drain/s': (s) => round(s.bestDrainRate, 100),
  'CPU µs add': (s) => s.addCpu.toFixed(1),
  'CPU µs work': (s) => s.workCpu.toFixed(1),
  'WAL B add': (s) => round(s.addWal),
  'WAL B work': (s) => round(s.workWal),
  'WAL B all': (s) => round(s.wal),
  images: (s) => round(s.images),
  'HOT %': (s) => round(s.hot * 100),
  'MB live': (s) => s.liveMb.toFixed(1),
  'MB kept': (s) => s.keptMb.toFixed(1),
};

const ratios = {
  'add ×B': (s, b) => (s.addRate / b.addRate).toFixed(2),
  'drain ×B': (s, b) => (s.drainRate / b.drainRate).toFixed(2),
  'best drain ×B': (s, b) => (s.bestDrainRate / b.bestDrainRate).toFixed(2),
  'CPU ×B': (s, b) => ((s.addCpu + s.workCpu) / (b.addCpu + b.workCpu)).toFixed(2),
  'WAL ×B': (s, b) => (s.wal / b.wal).toFixed(2),
};

/** The main table: absolute figures and ratios to shape B under the same load. */
export function mainTable(rows) {
  const base = (row) => rows.find((r) => r.name === 'B' && r.load === row.load && r.snapshot === row.snapshot).figures;
  return markdown(
    ['payload', 'old snapshot', 'shape', ...Object.keys(columns), ...Object.keys(ratios)],
    rows.map((row) => [
      row.load,
      row.snapshot ? 'yes' : 'no',
      row.name,
      ...Object.values(columns).map((column) => column(row.figures)),
      ...Object.values(ratios).map((ratio) => ratio(row.figures, base(row))),
    ]),
  );
}

export function sideTable(title, rows) {
  return markdown(
    [title, 'payload', ...Object.keys(columns)],
    rows.map((row) => [row.name, row.load, ...Object.values(columns).map((column) => column(row.figures))]),
  );
}

export function planTable(rows) {
  return markdown(
    ['shape', 'planner', 'table', 'claim', 'claim behind the cursor', 'settle'],
    rows.map(({ name, unpinned, analysedEmpty, plan }) => [
      name,
      unpinned ? 'default' : 'pinned',
      analysedEmpty ? 'analysed while empty' : 'full, never analysed',
      plan.claim,
      plan.cursor,
      plan.settle,
    ]),
  );
}

function markdown(head, rows) {
  const line = (cells) => `| ${cells.join(' | ')} |`;
  return [line(head), line(head.map(() => '---')), ...rows.map(line)].join('\n');
}

const round = (value, to = 1) => (Math.round(value / to) * to).toLocaleString('en-US');
