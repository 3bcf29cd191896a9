// The table on the terminal: redrawn in place; where the output is no terminal, printed now and then.
import { styleText } from 'node:util';
import { type Group, NOISY, type Waits } from './waits.js';

const REDRAW_MS = 100;
const REPORT_MS = 2_000;
const BAR = 20;

const { isTTY } = process.stdout;
const paint = (style: 'bold' | 'dim' | 'green' | 'yellow', text: string): string =>
  isTTY ? styleText(style, text) : text;

/** Draws until the returned function is called. */
export function showTable(waits: Waits, tenants: number): () => void {
  const draw = (): void => {
    const lines = linesOf(waits, tenants);
    process.stdout.write(isTTY ? lines.map((line) => `${line}\u001b[K\n`).join('') : `${lines.join('\n')}\n`);
    if (isTTY && timer) process.stdout.write(`\u001b[${lines.length}A`);
  };
  let timer: NodeJS.Timeout | null = setInterval(draw, isTTY ? REDRAW_MS : REPORT_MS);
  if (isTTY) process.stdout.write('\u001b[?25l');
  return () => {
    clearInterval(timer!);
    timer = null;
    draw();
    if (isTTY) process.stdout.write('\u001b[?25h');
  };
}

function linesOf({ noisy, others }: Waits, tenants: number): string[] {
  const heads = ['waiting', 'done', 'p50 wait', 'p99 wait'].map((head) => head.padStart(10)).join('');
  return [
    '',
    paint('dim', `  ${'tenant'.padEnd(16)}${heads}`),
    row(paint('yellow', NOISY.padEnd(16)), noisy, 'yellow'),
    row(paint('green', `${tenants - 1} others`.padEnd(16)), others, 'green'),
  ];
}

function row(name: string, group: Group, style: 'yellow' | 'green'): string {
  const counts = [group.waiting, group.waits.length].map((count) => count.toLocaleString('en').padStart(10)).join('');
  const times = [0.5, 0.99].map((share) => shown(group.quantile(share)).padStart(10)).join('');
  const filled = Math.round((group.waiting / group.asked || 0) * BAR);
  const bar = paint(style, '█'.repeat(filled)) + paint('dim', '░'.repeat(BAR - filled));
  return `  ${name}${counts}${paint('bold', times)}  ${bar}`;
}

export const shown = (ms: number): string => (ms < 1_000 ? `${Math.round(ms)} ms` : `${(ms / 1_000).toFixed(1)} s`);
