// @ts-check
// Ends a server whose supervisor was killed, and removes what was temporary; its parent waits for that.
// Input: { pid, folder, temporary } as JSON in argv[2].
import fs from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { runningServer } from './data-folder.mjs';

const FAST_STOP_MS = 10_000;
const IMMEDIATE_STOP_MS = 5_000;
const POLL_MS = 20;

/** @param {{ pid: number, folder: string, temporary: string | null }} remains */
async function bury({ pid, folder, temporary }) {
  const isThere = () => runningServer(folder)?.pid === pid;
  /** @type {[NodeJS.Signals, number][]} */
  const signals = [
    ['SIGINT', FAST_STOP_MS],
    ['SIGQUIT', IMMEDIATE_STOP_MS],
    ['SIGKILL', IMMEDIATE_STOP_MS],
  ];
  for (const [signal, ms] of signals) {
    if (isThere()) process.kill(pid, signal);
    const deadline = Date.now() + ms;
    while (isThere() && Date.now() < deadline) await sleep(POLL_MS);
  }
  if (temporary !== null) fs.rmSync(temporary, { recursive: true, force: true, maxRetries: 5 });
}

await bury(JSON.parse(process.argv[2] ?? '{}'));
