// Places in queues that a pool frees: it tells others of those that it does not fill.
import { expect, it } from '@jest/globals';
import type { ClaimedJob } from '../../lib/index.js';
import { FreedPlaces } from '../../lib/worker/freed.places.js';

const jobOf = (queue: string | null, partition: string | null = null): ClaimedJob =>
  ({ queue, partition }) as ClaimedJob;

it('others are told of a queue in which a pool has freed several places and filled one', () => {
  const freed = new FreedPlaces();
  for (const queue of ['a', 'a', 'b']) freed.add(jobOf(queue));
  freed.fill([jobOf('a'), jobOf('b'), jobOf('c'), jobOf(null)]);
  expect(freed.take()).toEqual(['a\x1f']);
  expect(freed.take()).toEqual([]);
});

it('others are told of the partition in which a place became free, unless another partition of the queue has filled it', () => {
  const freed = new FreedPlaces();
  for (const partition of ['acme', 'beta', 'beta']) freed.add(jobOf('a', partition));
  freed.fill([jobOf('a', 'beta')]);
  expect(freed.take()).toEqual(['a\x1facme\x1f', 'a\x1fbeta\x1f']);
  for (const partition of ['acme', 'beta']) freed.add(jobOf('a', partition));
  freed.fill([jobOf('a', 'gamma'), jobOf('a', null)]);
  expect(freed.take()).toEqual([]);
});
