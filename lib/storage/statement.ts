// What a statement of the library is: a name, a text, and how it behaves.
/** How a statement behaves when the connection is in trouble. */
export interface StatementTraits {
  /** Reads, or sets what it sets already: where its answer was lost it is simply run again. */
  readonly repeatable?: true;
  /**
   * Why it may take more than a minute where tables are large: on a connection of the library's its answer is waited for for an
   * hour. Without this trait a statement has a minute: a connection that says nothing by then is given up.
   */
  readonly slow?: string;
  /** Waits for locks for 100 ms at most in a caller's transaction, too. On the library's connections every statement does. */
  readonly brief?: true;
  /** Its functions limit how long it waits for locks, or it takes none: it needs no transaction that does. */
  readonly limited?: true;
  /** A caller waits for its answer: where locks are in its way, it is tried again for 10 s. For no statement of a pool. */
  readonly patient?: true;
  /** The same with a limit of its own, where the text, which has none, would have to be put into a transaction. */
  readonly limitedText?: (schema: string) => string;
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

/** How long a statement waits for a lock: for a row, and for a table that another session has locked as a whole. */
export const MAX_LOCK_WAIT = '100ms';

/** How long this transaction waits for a lock. Returns how long it would have waited. $1 as lock_timeout takes it. */
export const setLockTimeout = statement<{ before: string }>(
  'set_lock_timeout',
  () => `
  select pg_catalog.current_setting('lock_timeout') as before, pg_catalog.set_config('lock_timeout', $1, true)`,
);

/** Fails, and with it the transaction that it is run in. */
export const failTransaction = statement(
  'fail_transaction',
  () => `
  do $$ begin
    raise exception 'millrace has refused a call of this transaction when a part of it was done: roll it back';
  end $$`,
);
