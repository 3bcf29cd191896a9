// One text for equal JSON values: what is unique is compared by it.

/**
 * The JSON text of a parsed value, the properties of objects in order of their names' UTF-16 code units, without white space.
 * Arrays keep their order, numbers are written as JavaScript writes them, and texts as they are: no Unicode form is
 * preferred. @throws RangeError for a value that is nested too deeply
 */
export function canonicalJson(value: unknown): string {
  if (typeof value !== 'object' || value === null) return JSON.stringify(value);
  if (Array.isArray(value)) return `[${value.map(canonicalJson).join()}]`;
  const object = value as Record<string, unknown>;
  const names = Object.keys(object).toSorted((a, b) => (a < b ? -1 : 1));
  return `{${names.map((name) => `${JSON.stringify(name)}:${canonicalJson(object[name])}`).join()}}`;
}

/** The part of a parsed value at a path; undefined where there is none. */
export function partAt(value: unknown, path: string[]): unknown {
  let part = value;
  for (const name of path) {
    if (typeof part !== 'object' || part === null || !Object.hasOwn(part, name)) return undefined;
    part = (part as Record<string, unknown>)[name];
  }
  return part;
}
