// What a statement of the library is: a name, a text, and how it behaves.
import { COPY_LENGTH } from './call.marks.js';

/** How a statement behaves when the connection is in trouble. */
export interface StatementTraits {
  /** Reads, or sets what it sets already: where its answer was lost it is simply run again. */
  readonly repeatable?: true;
  /**
   * Why it may take more than a minute where tables are large: on a connection of the library's its answer is waited for for an
   * hour. Without this trait a statement has a minute: a connection that says nothing by then is given up.
   */
  readonly slow?: string;
  /** Its functions limit how long it waits for locks, or it takes none: it needs no transaction that does. */
  readonly limited?: true;
  /** A caller waits for its answer: where locks are in its way, it is tried again for 10 s. For no statement of a pool. */
  readonly patient?: true;
  /** The same with a limit of its own, where the text, which has none, would have to be put into a transaction. */
  readonly limitedText?: (schema: string) => string;
  /**
   * For a call in a caller's transaction: does nothing and returns no row where `inCall` of one more parameter is not true,
   * and returns rows where it is. It must not fail then: the transaction that it would end may be another request's.
   */
  readonly withinText?: (schema: string) => string;
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

const MARKS = "pg_catalog.current_setting('millrace.calls', true)";

/**
 * Names the transaction that it is run in, until that ends, or its savepoint is rolled back to. $1 the mark. Outside of a
 * transaction it is gone at once. Other executors than pg's have this planned each time, so it is short.
 */
export const markTransaction = statement(
  'mark_transaction',
  () => `
  select pg_catalog.set_config('millrace.calls', case when pg_catalog.strpos(${MARKS}, $1::text) > 0 then ${MARKS}
    else pg_catalog.concat_ws(' ', ${MARKS}, $1::text) end, true) is null`,
);

/**
 * The same, and drops marks of calls that are over. $2 those of this process that are under way, apart by spaces. Younger ones
 * stay too: they were not known when this was asked for. So do those that others have set.
 */
export const markAndDrop = statement(
  'mark_and_drop',
  () => `
  select pg_catalog.set_config('millrace.calls', pg_catalog.concat_ws(' ', (
    select pg_catalog.string_agg(mark, ' ') from pg_catalog.unnest(pg_catalog.string_to_array(${MARKS}, ' ')) as mark
    where mark <> $1::text and (
      mark collate "C" > $1::text or pg_catalog.left(mark, ${COPY_LENGTH}) <> pg_catalog.left($1::text, ${COPY_LENGTH})
      or mark = any(pg_catalog.string_to_array($2::text, ' '))
    )
  ), $1::text), true) is null`,
);

/** Whether the transaction has the mark, which is parameter `place`. */
export const inCall = (place: number): string => `coalesce(pg_catalog.strpos(${MARKS}, $${place}::text) > 0, false)`;

const REFUSED_HALF_WAY = 'millrace has refused a call of this transaction when a part of it was done: roll it back';

/** Fails, and with it the transaction that it is run in. */
export const failTransaction = statement(
  'fail_transaction',
  () => `do $$ begin raise exception '${REFUSED_HALF_WAY}'; end $$`,
  // Where the mark is found, a text is read as a number.
  { withinText: () => `select (case when ${inCall(1)} then '${REFUSED_HALF_WAY}' end)::integer where ${inCall(1)}` },
);
