// What is compared with what: shapes, loads and side lines.
import { inFunctions } from './functions.mjs';
import { wordyText } from './jobs.mjs';
import { live } from './live.shape.mjs';
import { readyLeased } from './ready-leased.shape.mjs';
import { wide } from './wide.shape.mjs';

const hot = { keepIndexed: true, fillfactor: 40 };

const shapes = {
  B: wide(),
  C: readyLeased(),
  C1: live(),
  C1H: live(hot),
  'C1H+P': live({ ...hot, partitioned: true }),
};

const small = { load: '100 B', bytes: 100, jobs: 100_000 };
const medium = { load: '2 KB', bytes: 2_000, jobs: 40_000 };
const large = { load: '20 KB', bytes: 20_000, jobs: 5_000 };

/** Every shape under every load, without and with an old snapshot. */
export const mainCells = [small, medium, large].flatMap((load) =>
  [false, true].flatMap((snapshot) =>
    Object.entries(shapes).map(([name, shape]) => ({ ...load, name, shape, snapshot, cursor: snapshot })),
  ),
);

// The side lines need fewer jobs.
const some = { ...small, jobs: 60_000 };

const fillfactors = [
  { ...some, name: 'C1 ff50', shape: live({ fillfactor: 50 }) },
  ...[100, 70, 50, 45, 40].map((fillfactor) => ({
    ...some,
    name: `C1H ff${fillfactor}`,
    shape: live({ ...hot, fillfactor }),
  })),
];

const payloadTypes = [some, medium].flatMap((load) => [
  { ...load, name: 'C1H json', shape: shapes.C1H },
  { ...load, name: 'C1H jsonb', shape: live({ ...hot, json: 'jsonb' }) },
]);

// The longest payload that stays in the row: an update of a wide row writes it again.
const inline = { load: '1.8 KB', bytes: 1_800, jobs: 40_000 };
const inlinePayloads = ['B', 'C1H'].map((name) => ({ ...inline, name, shape: shapes[name] }));

// Up to 8 KB a body stays in its row, uncompressed; by default it is compressed and moved out from 2 KB on.
const inRow = { ...shapes.C1H, ddl: `${shapes.C1H.ddl} alter table job_bodies set (toast_tuple_target = 8160);` };
const bodyStorage = [
  { ...medium, jobs: 20_000 },
  { load: '2 KB of words', bytes: 2_000, jobs: 20_000, text: wordyText },
  { load: '6 KB of words', bytes: 6_000, jobs: 8_000, text: wordyText },
].flatMap((load) => [
  { ...load, name: 'C1H', shape: shapes.C1H },
  { ...load, name: 'C1H toast_tuple_target 8160', shape: inRow },
]);

const historyIndexes = [
  { ...some, name: 'C1H btree (job_id)', shape: shapes.C1H },
  { ...some, name: 'C1H brin (job_id)', shape: live({ ...hot, historyIndex: 'brin' }) },
  { ...some, name: 'C1H none', shape: live({ ...hot, historyIndex: 'none' }) },
];

const cursors = ['B', 'C', 'C1', 'C1H'].map((name) => ({ ...small, name, shape: shapes[name], snapshot: true }));

const running = ['C1', 'C1H'].map((name) => ({ ...some, name, shape: shapes[name], running: 5_000 }));

const twoWorkers = ['B', 'C', 'C1', 'C1H'].map((name) => ({ ...some, name, shape: shapes[name], workers: 2 }));

const checkpoints = [some, medium].flatMap((load) =>
  ['B', 'C1', 'C1H'].map((name) => ({ ...load, name, shape: shapes[name], checkpoint: true })),
);

// Slow ones are stopped after a while; their rates are those of a nearly full table.
const plans = ['B', 'C', 'C1', 'C1H'].flatMap((name) => [
  { name: `${name} default planner`, shape: shapes[name], unpinned: true },
  { name: `${name} default planner, idle first`, shape: shapes[name], unpinned: true, idleFirst: true },
  { name: `${name} pinned, idle first`, shape: shapes[name], idleFirst: true },
]);
const functions = [
  { name: 'C1H functions', shape: inFunctions(shapes.C1H), unpinned: true },
  { name: 'C1H functions, idle first', shape: inFunctions(shapes.C1H), unpinned: true, idleFirst: true },
];
const planned = [...plans, ...functions].map((cell) => ({ ...small, jobs: 40_000, maxMs: 3_000, ...cell }));

export const sideCells = {
  Fillfactor: fillfactors,
  'Payload type': payloadTypes,
  'Longest payload in the row': inlinePayloads,
  'Where the body is stored': bodyStorage,
  'Index of the history': historyIndexes,
  'Old snapshot, no cursor': cursors,
  '5,000 older jobs running, no cursor': running,
  'Two workers': twoWorkers,
  'Checkpoint between add and drain': checkpoints,
  'Planner (40,000 jobs, at most 3 s)': planned,
};

export const planCells = Object.entries(shapes).flatMap(([name, shape]) =>
  [true, false].flatMap((unpinned) => [
    { name, shape, unpinned, analysedEmpty: false },
    { name, shape, unpinned, analysedEmpty: true },
  ]),
);
