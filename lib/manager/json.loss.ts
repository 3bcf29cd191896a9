// What JSON would lose silently: a Map becomes {}, an invalid Date null, a function vanishes. Whatever is to be
// read back as it was written is looked through first.

/** PostgreSQL and schemas read deeper values with a stack of their own, which is smaller than V8's. */
const MAX_DEPTH = 1_000;
/** Names that objects give themselves and that JSON writes as what they are. */
const KEPT = new Set(['Object', 'Array', 'String', 'Number', 'Boolean']);

/**
 * Why a value that JSON.stringify has accepted would not come back as it was, or null. An `undefined` property is no
 * loss: it comes back as undefined.
 */
export const lossIn = (value: unknown, path: string): string | null => lossAt(value, path, '', 0);

function lossAt(value: unknown, path: string, key: string, depth: number): string | null {
  switch (typeof value) {
    case 'number':
      return Number.isFinite(value) ? null : `${path} is ${value}, which JSON cannot express. Use null or a string.`;
    case 'function':
      return `${path} is a function, which JSON leaves out.`;
    case 'symbol':
      return `${path} is a symbol, which JSON leaves out.`;
    case 'object':
      return value === null ? null : lossInObject(value, path, key, depth);
    default:
      return null;
  }
}

function lossInObject(value: object, path: string, key: string, depth: number): string | null {
  if (depth > MAX_DEPTH) return `it is nested more than ${MAX_DEPTH} levels deep.`;
  const { toJSON } = value as { toJSON?: unknown };
  if (typeof toJSON !== 'function') return lossInParts(value, path, depth);
  if (tagOf(value) === 'Date' && Number.isNaN((value as Date).getTime())) {
    return `${path} is an invalid Date, which JSON writes as null.`;
  }
  // What an object says of itself is stored: a Date says its ISO string, a URL its address.
  const written: unknown = toJSON.call(value, key);
  const isObject = typeof written === 'object' && written !== null;
  return isObject ? lossInParts(written, path, depth) : lossAt(written, path, key, depth);
}

function lossInParts(value: object, path: string, depth: number): string | null {
  if (Array.isArray(value)) return lossInArray(value, path, depth);
  if (isLost(value))
    return `${path} is of type ${tagOf(value)}, which JSON does not keep. Use a plain object or an array.`;
  for (const [name, inner] of Object.entries(value)) {
    const loss = lossAt(inner, `${path}.${name}`, name, depth + 1);
    if (loss !== null) return loss;
  }
  return null;
}

/** Gaps, too, would come back as null. */
function lossInArray(values: unknown[], path: string, depth: number): string | null {
  for (let index = 0; index < values.length; index++) {
    const inner = values[index];
    const place = `${path}.${index}`;
    if (inner === undefined) return `${place} is undefined, which JSON writes as null. Use null.`;
    const loss = lossAt(inner, place, String(index), depth + 1);
    if (loss !== null) return loss;
  }
  return null;
}

/** Map, Set, Promise, Error, RegExp, typed arrays, URLSearchParams and the like, of whatever realm. */
function isLost(value: object): boolean {
  const tag = tagOf(value);
  if (KEPT.has(tag)) return false;
  return typeof (globalThis as Record<string, unknown>)[tag] === 'function' || Object.keys(value).length === 0;
}

const tagOf = (value: object): string => Object.prototype.toString.call(value).slice(8, -1);
