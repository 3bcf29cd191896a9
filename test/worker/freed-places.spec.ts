// Places in queues that a pool frees: it tells others of those that it does not fill.
import { expect, it } from '@jest/globals';
import type { ClaimedJob } from '../../lib/index.js';
import { FreedPlaces } from '../../lib/worker/freed.places.js';

const jobOf = (queue: string | null): ClaimedJob => ({ queue }) as ClaimedJob;

it('others are told of a queue in which a pool has freed several places and filled one', () => {
  const freed = new FreedPlaces();
  for (const queue of ['a', 'a', 'b']) freed.add(queue);
  freed.fill([jobOf('a'), jobOf('b'), jobOf('c'), jobOf(null)]);
  expect(freed.take()).toEqual(['a\x1f']);
  expect(freed.take()).toEqual([]);
});
