import { describe, expect, it } from '@jest/globals';
import { WriteBatcher } from '../../lib/manager/write.batcher.js';

interface Line {
  job: string;
  text: string;
}

const MEGABYTE = 1024 * 1024;

/** A batcher whose writes end when the spec says so. */
function batcher(keyOf?: (line: Line) => unknown) {
  const batches: Line[][] = [];
  const ends: (() => void)[] = [];
  const made = new WriteBatcher<Line>(async (lines) => {
    batches.push(lines);
    await new Promise<void>((resolve) => ends.push(resolve));
  }, keyOf);
  const finish = async (): Promise<void> => {
    let idle = false;
    void made.idle().then(() => (idle = true));
    while (!idle) {
      ends.splice(0).forEach((end) => end());
      await new Promise((resolve) => setImmediate(resolve));
    }
  };
  return { made, batches, finish };
}

describe('writes that are not awaited', () => {
  it('take the place of those of their key, so that only the last one is written', async () => {
    const { made, batches, finish } = batcher(({ job }) => job);
    const written = Array.from({ length: 300 }, (_, n) => made.write({ job: 'a', text: String(n) }));
    void made.write({ job: 'b', text: 'other' });
    await finish();
    await Promise.all(written);
    expect(batches.map((lines) => lines.map(({ text }) => text))).toEqual([['299', 'other']]);
  });

  it('are written in order and all, where each counts', async () => {
    const { made, batches, finish } = batcher();
    for (let n = 0; n < 2_500; n++) void made.write({ job: 'a', text: String(n) });
    await finish();
    expect(batches.map(({ length }) => length)).toEqual([1_000, 1_000, 500]);
    expect(batches.flat().map(({ text }) => Number(text))).toEqual(Array.from({ length: 2_500 }, (_, n) => n));
  });

  it('hold 16 MB at most: what comes beyond is forgotten, and later writes go on', async () => {
    const { made, batches, finish } = batcher();
    const text = 'x'.repeat(MEGABYTE);
    const written = Array.from({ length: 300 }, () => made.write({ job: 'a', text }));
    await finish();
    await Promise.all(written);
    expect(batches.flat()).toHaveLength(16);
    expect(Math.max(...batches.map(({ length }) => length))).toBe(4);
    const later = made.write({ job: 'a', text: 'later' });
    await finish();
    await later;
    expect(batches.at(-1)).toEqual([{ job: 'a', text: 'later' }]);
  });
});
