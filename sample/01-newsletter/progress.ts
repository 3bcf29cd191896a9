// What the terminal shows while the campaign runs, and the table at its end.
import type { JobEvents } from 'millrace';

export interface Tally {
  settled: number;
  exhausted: number;
  retried: number;
}

/** Counts what happens to the campaign's jobs from now on. */
export function tallyOf(events: JobEvents): Tally {
  const tally: Tally = { settled: 0, exhausted: 0, retried: 0 };
  events.on('job.settled', ({ job, outcome }) => {
    if (!job.tags.includes('campaign')) return;
    if (outcome === 'completed' || outcome === 'exhausted') tally.settled++;
    if (outcome === 'exhausted') tally.exhausted++;
    if (outcome === 'retrying') tally.retried++;
  });
  return tally;
}

const WIDTH = 30;
const REPAINT_MS = 250;
const REPORT_MS = 2_000;

/** Shows a bar until the returned function is called; a line now and then where the output is no terminal. */
export function showProgress(tally: Tally, total: number): () => void {
  const { isTTY } = process.stdout;
  const paint = (): void => {
    const filled = Math.min(WIDTH, Math.round((tally.settled / total) * WIDTH));
    const bar = '#'.repeat(filled).padEnd(WIDTH, '.');
    const line = `[${bar}] ${tally.settled}/${total} settled, ${tally.retried} retried, ${tally.exhausted} exhausted`;
    process.stdout.write(isTTY ? `\r${line}\u001b[K` : `${line}\n`);
  };
  const timer = setInterval(paint, isTTY ? REPAINT_MS : REPORT_MS);
  return () => {
    clearInterval(timer);
    paint();
    if (isTTY) process.stdout.write('\n');
  };
}

export function printTable(rows: Record<string, number | string>): void {
  const label = Math.max(...Object.keys(rows).map((name) => name.length));
  const value = Math.max(...Object.values(rows).map((entry) => String(entry).length));
  for (const [name, entry] of Object.entries(rows))
    console.log(`${name.padEnd(label)}  ${String(entry).padStart(value)}`);
}
