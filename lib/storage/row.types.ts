// How values come back from PostgreSQL, whatever the application has set in pg's global type parsers. Statements
// return only these types: times as milliseconds (numeric), lists as json, bigints as decimal strings.

type Parse = (text: string) => unknown;

const parsers: Record<number, Parse> = {
  16: (text) => text === 't',
  21: Number,
  23: Number,
  700: Number,
  701: Number,
  1700: Number,
  114: (text) => JSON.parse(text) as unknown,
};

const asText: Parse = (text) => text;

/** pg's `types` setting of a query. */
export const rowTypes = {
  getTypeParser: (oid: number): any => parsers[oid] ?? asText,
};

/** A time as statements return it (milliseconds since 1970). */
export const toDate = (ms: number | string): Date => new Date(Math.floor(Number(ms)));

export const toDateOrNull = (ms: number | string | null): Date | null => (ms === null ? null : toDate(ms));
