// A worker process of the case `strict` of bench/fairness.mjs. Handlers write when they begin and end: with the system's
// clock, which the database shares, straight into a file, so that `kill -9` loses nothing.
import { openSync, writeSync } from 'node:fs';
import { createJobManager } from '../dist/index.js';
import { pause, work } from './stage.mjs';

const [url, file] = process.argv.slice(2);
const log = openSync(file, 'a');
const note = (what, { id, fence, partition }) =>
  writeSync(log, `${JSON.stringify([what, Date.now(), process.pid, id, String(fence), partition])}\n`);

const jobs = await createJobManager({ connection: url });
const serve = async (_payload, { job }) => {
  note('begin', job);
  await pause(5 + Math.random() * 25);
  note('end', job);
};
await work(jobs, serve, { leaseMs: 2_000, keepaliveMs: 500, pollIntervalMs: 250, maxCrashes: 32_767 });
process.send('ready');
