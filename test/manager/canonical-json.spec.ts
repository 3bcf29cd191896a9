// What is unique is compared by a text of its payload: the same text for equal values, another one for others.
import { describe, expect, it } from '@jest/globals';
import { isDeepStrictEqual } from 'node:util';
import fc from 'fast-check';
import { canonicalJson, partAt } from '../../lib/manager/canonical.json.js';

const json = fc.jsonValue({ maxDepth: 4 });

/** The same value with the properties of all its objects in another order. */
function shuffled(value: unknown, orders: () => number): unknown {
  if (Array.isArray(value)) return value.map((one) => shuffled(one, orders));
  if (typeof value !== 'object' || value === null) return value;
  const entries = Object.entries(value).map(([name, one]) => [name, shuffled(one, orders), orders()] as const);
  const turned = entries.toSorted((a, b) => a[2] - b[2]).map(([name, one]) => [name, one] as const);
  return Object.fromEntries(turned);
}

describe('canonical JSON', () => {
  it('is the same for equal values, whatever the order of their properties', () => {
    fc.assert(
      fc.property(json, fc.infiniteStream(fc.nat()), (value, stream) => {
        const stored: unknown = JSON.parse(JSON.stringify(value));
        const orders = (): number => stream.next().value as number;
        expect(canonicalJson(shuffled(stored, orders))).toBe(canonicalJson(stored));
      }),
    );
  });

  it('is another one for values that differ', () => {
    fc.assert(
      fc.property(json, json, (a, b) => {
        const [one, other] = [a, b].map((value) => JSON.parse(JSON.stringify(value)) as unknown);
        expect(canonicalJson(one) === canonicalJson(other)).toBe(isDeepStrictEqual(one, other));
      }),
    );
  });

  it('is JSON of the same value', () => {
    fc.assert(
      fc.property(json, (value) => {
        const stored: unknown = JSON.parse(JSON.stringify(value));
        expect(JSON.parse(canonicalJson(stored))).toEqual(stored);
      }),
    );
  });

  it.each<[string, string, boolean]>([
    ['{"a":1,"b":[1,{"c":2,"d":3}]}', '{"b":[1,{"d":3,"c":2}],"a":1}', true],
    ['1.0', '1', true],
    ['1e2', '100', true],
    ['-0', '0', true],
    ['"\\u00e9"', '"é"', true],
    ['"e\\u0301"', '"é"', false],
    ['[1,2]', '[2,1]', false],
    ['[[1],2]', '[1,[2]]', false],
    ['"1"', '1', false],
    ['null', '{}', false],
    ['{"a":null}', '{}', false],
    ['{"__proto__":{"x":1}}', '{}', false],
    ['"\\ud800"', '"\\ud801"', false],
    ['{"a":"b,c"}', '{"a":"b","c":""}', false],
  ])('tells whether %s and %s are equal', (one, other, equal) => {
    expect(canonicalJson(JSON.parse(one)) === canonicalJson(JSON.parse(other))).toBe(equal);
  });

  it('finds parts by their own properties alone', () => {
    expect(partAt({ a: [{ b: null }] }, ['a', '0', 'b'])).toBeNull();
    expect(partAt({ a: 'text' }, ['a', 'length'])).toBeUndefined();
    expect(partAt({}, ['constructor'])).toBeUndefined();
    expect(partAt({}, ['__proto__'])).toBeUndefined();
  });
});
