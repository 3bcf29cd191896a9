// What is compared with what: shapes, loads and side lines.
import { live } from './live.shape.mjs';
import { readyLeased } from './ready-leased.shape.mjs';
import { wide } from './wide.shape.mjs';

export const shapes = {
  B: wide(),
  C: readyLeased(),
  C1: live(),
  'C1 ff50': live({ fillfactor: 50 }),
  C1H: live({ keepIndexed: true }),
  'C1H ff70': live({ keepIndexed: true, fillfactor: 70 }),
  'C1H ff50': live({ keepIndexed: true, fillfactor: 50 }),
};

export const loads = {
  '100 B': { bytes: 100, jobs: 100_000 },
  '2 KB': { bytes: 2_000, jobs: 40_000 },
  '20 KB': { bytes: 20_000, jobs: 6_000 },
};
