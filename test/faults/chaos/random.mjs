// Choices that a seed decides.

/** A stream of numbers in [0, 1) with what chaos needs of it (the generator is Mulberry32). */
export function randomFrom(seed) {
  let state = seed >>> 0;
  const next = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
  const between = (low, high) => low + next() * (high - low);
  const pick = (list) => list[Math.floor(next() * list.length)];
  /** One of the entries, each as often as its weight says. */
  const weighted = (entries) => {
    let left = next() * entries.reduce((sum, { weight }) => sum + weight, 0);
    return entries.find(({ weight }) => (left -= weight) < 0) ?? entries.at(-1);
  };
  return { next, between, pick, weighted };
}
