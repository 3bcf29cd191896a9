// What a statement of the library is: a name, a text, and how it behaves.
/** How a statement behaves when the connection is in trouble. */
export interface StatementTraits {
  /** Reads, or sets what it sets already: where its answer was lost it is simply run again. */
  readonly repeatable?: true;
  /** Never waits for other people's transactions: without an answer for a minute, its connection is dead. */
  readonly prompt?: true;
  /** May meet locks of other people's transactions: waits for them for 100 ms at most, and fails then. */
  readonly brief?: true;
}

/** A statement of the library: its text depends on nothing but the (quoted) schema. */
export interface Statement<Row> extends StatementTraits {
  readonly name: string;
  readonly text: (schema: string) => string;
  /** Only carries the row's type. */
  readonly row?: Row;
}

/** Declares a statement; see storage/statements. */
export const statement = <Row>(
  name: string,
  text: (schema: string) => string,
  traits: StatementTraits = {},
): Statement<Row> => ({ name, text, ...traits });

/** How long this transaction waits for a lock. Returns how long it would have waited. $1 as lock_timeout takes it. */
export const setLockTimeout = statement<{ before: string }>(
  'set_lock_timeout',
  () => `
  select pg_catalog.current_setting('lock_timeout') as before, pg_catalog.set_config('lock_timeout', $1, true)`,
);
