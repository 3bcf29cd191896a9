// The contestants: every name maps to the file that drives it and to what a reader must know to compare it fairly.
//
// A contestant's file exports, each taking the URL of its own empty database and the `settings` of its entry:
//   install(url, settings)                    makes its tables
//   produce(url, settings)                    → { add(payload), addMany(payloads, { runAt, queueOf, limitOf }), close() }
//   work(url, settings, concurrency, handler) → { stop() }, resolves when the worker has started
//   watch(url, settings)                      → { unfinished(), count(), close() }, of due jobs that are not settled
//   holdHeads(url)                            optional: takes all that queues and limits let through, and keeps it
//   registerLimits(url, count)                optional: rate limits limit-0, limit-1 …

/** `most`: more jobs than this would take minutes; its tables say so. */
export const contestants = {
  millrace: { file: 'millrace.mjs', settings: {}, kept: 'a record of every attempt' },
  'millrace, no history': { file: 'millrace.mjs', settings: { history: { keep: 'none' } }, kept: 'nothing' },
  ceiling: { file: 'ceiling.mjs', settings: {}, kept: 'nothing' },
  'graphile-worker tuned': { file: 'graphile-worker.mjs', settings: { tuned: true }, kept: 'nothing' },
  'graphile-worker': { file: 'graphile-worker.mjs', settings: {}, kept: 'nothing', most: 10_000 },
  'pg-boss tuned': { file: 'pg-boss.mjs', settings: { tuned: true }, kept: 'the finished row, 7 days' },
  'pg-boss': { file: 'pg-boss.mjs', settings: {}, kept: 'the finished row, 7 days', most: 50 },
  bullmq: { file: 'bullmq.mjs', settings: {}, kept: 'the finished job', store: 'redis' },
  'bullmq on postgres': { file: 'bullmq.mjs', settings: { postgres: true }, kept: 'the finished job', most: 5_000 },
};

// Another checkout, built: MILLRACE_BEFORE names its folder.
const before = process.env.MILLRACE_BEFORE;
if (before) {
  contestants['millrace before'] = { ...contestants.millrace, settings: { dist: `${before}/dist` } };
}

const techniques = [
  'batched claims',
  'gathered settles',
  'prepared statements',
  'pinned plans',
  'the claim cursor',
  'gathered adds',
  'NOTIFY after commits',
  'inserts of alike jobs',
];

/** Millrace without one of its techniques: they take part in the measure of techniques alone. */
export const variants = Object.fromEntries(
  techniques.map((technique) => [
    `millrace without ${technique}`,
    { file: 'millrace.mjs', settings: { without: technique }, kept: 'a record of every attempt' },
  ]),
);

export const entryOf = (name) => contestants[name] ?? variants[name];

export const storeOf = (name) => entryOf(name).store ?? 'postgres';

export const load = (name) => import(new URL(entryOf(name).file, import.meta.url));
