// Runs a statement on whatever connection a caller hands in.
import type pg from 'pg';
import type { QueryExecutor } from '../interfaces/job.interface.js';
import { rowTypes } from './row.types.js';

export const rowsOf = <Row>(result: { rows: unknown[] }): Row[] => result.rows as Row[];

export interface ExecutorQuery {
  name: string | undefined;
  text: string;
  values: unknown[];
  /** None on connections of callers: how long they wait is theirs to say. */
  query_timeout: number | undefined;
}

/** Named statements and our own type parsing where the connection is pg's; the plain call where it is not. */
export async function runOn<Row>(executor: QueryExecutor, query: ExecutorQuery): Promise<Row[]> {
  const client = await pgClientOf(executor);
  if (client) return rowsOf<Row>(await client.query({ ...query, types: rowTypes }));
  const answer: unknown = await executor.query(query.text, query.values);
  return (Array.isArray(answer) ? answer : ((answer as { rows?: unknown[] } | undefined)?.rows ?? [])) as Row[];
}

/** The pg client behind an executor: itself, or the one a TypeORM transaction runs on. */
async function pgClientOf(executor: QueryExecutor): Promise<pg.ClientBase | null> {
  const { queryRunner } = executor as { queryRunner?: { connect?: () => Promise<unknown> } };
  const runner = queryRunner ?? (executor as { connect?: () => Promise<unknown> });
  if (isPg(executor)) return executor as unknown as pg.ClientBase;
  if (typeof runner.connect !== 'function' || !('isTransactionActive' in runner)) return null;
  const client = await runner.connect();
  return isPg(client) ? (client as pg.ClientBase) : null;
}

const isPg = (candidate: unknown): boolean =>
  typeof candidate === 'object' &&
  candidate !== null &&
  ('connectionParameters' in candidate || ('totalCount' in candidate && 'idleCount' in candidate));
