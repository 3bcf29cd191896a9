// The table on the terminal: its rows are drawn again in place, or, where the output is no terminal, below.
import { styleText } from 'node:util';
import { type Group, NOISY, type Waits } from './waits.js';

const BAR = 20;
const { isTTY } = process.stdout;
const paint: typeof styleText = (style, text) => (isTTY ? styleText(style, text) : text);
const right = (cells: string[]): string => cells.map((cell) => cell.padStart(10)).join('');

/** Draws until the returned function is called. */
export function showTable({ noisy, others }: Waits, tenants: number): () => void {
  const draw = (): void => {
    const rows = [row(NOISY, noisy, 'yellow'), row(`${tenants - 1} others`, others, 'green')];
    process.stdout.write(`${rows.join('\n')}\n`);
  };
  const redraw = (): void => {
    if (isTTY) process.stdout.write('\u001b[2A');
    draw();
  };
  const heads = right(['waiting', 'done', 'p50 wait', 'p99 wait']);
  console.log(`\n${paint('dim', `  tenant${' '.repeat(8)}${heads}`)}`);
  draw();
  const timer = setInterval(redraw, isTTY ? 100 : 2_000);
  return () => {
    clearInterval(timer);
    redraw();
  };
}

function row(name: string, group: Group, color: 'yellow' | 'green'): string {
  const counts = right([group.waiting, group.waits.length].map((count) => count.toLocaleString('en')));
  const times = right([0.5, 0.99].map((share) => shown(group.quantile(share))));
  const filled = Math.ceil((group.waiting / group.asked || 0) * BAR);
  const bar = paint(color, '█'.repeat(filled)) + paint('dim', '░'.repeat(BAR - filled));
  return `  ${paint(color, name.padEnd(14))}${counts}${paint('bold', times)}  ${bar}`;
}

export const shown = (ms: number): string => (ms < 1_000 ? `${Math.round(ms)} ms` : `${(ms / 1_000).toFixed(1)} s`);
