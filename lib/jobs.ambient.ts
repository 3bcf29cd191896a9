// The transaction that a caller of addJob is in without handing it over: typeorm-transactional's, or that of
// @nestjs-cls/transactional. Neither package is imported: what they put into the application is enough to see it.
import type { ModulesContainer } from '@nestjs/core';
import type { DataSource } from './interfaces/typeorm.interface.js';
import type { QueryExecutor } from './interfaces/job.interface.js';

/** The transaction that is active where this is called, if there is one. */
export type AmbientTransaction = () => QueryExecutor | undefined;

type EntityManager = DataSource['manager'];

/** What we need of a `TransactionHost` of @nestjs-cls/transactional: there is one for each connection it knows. */
interface TransactionHost {
  /** What its adapter runs statements on: an `EntityManager` only if that is TypeORM's. */
  readonly tx: unknown;
  isTransactionActive(): boolean;
}

/**
 * Sees the ambient transactions of one DataSource; with none (the library has a pool of its own) there are none to join.
 * The hosts of @nestjs-cls/transactional are found among the application's modules, so only inside Nest.
 */
export function ambientTransactionOf(
  dataSource: DataSource | undefined,
  modules: ModulesContainer | null = null,
): AmbientTransaction {
  if (!dataSource) return () => undefined;
  const hosts = modules ? findHosts(modules) : [];
  return () => {
    // Injected repositories follow typeorm-transactional too, so it comes first where both are active.
    const patched = joinable(dataSource.manager, dataSource);
    if (patched) return patched;
    for (const host of hosts) {
      const manager = joinable(activeIn(host()), dataSource);
      if (manager) return manager;
    }
    return undefined;
  };
}

/**
 * Found by shape, not by class or name: there may be several copies of the package, and a bundler may rename them.
 * Looked up for each call, since Nest may create a host later than the JobManager.
 */
function findHosts(modules: ModulesContainer): (() => TransactionHost)[] {
  const wrappers = [...modules.values()].flatMap(({ providers }) => [...providers.values()]);
  return wrappers
    .filter(({ metatype }) => isHostClass(metatype))
    .map((wrapper) => () => wrapper.instance as TransactionHost);
}

function isHostClass(metatype: unknown): boolean {
  const prototype: unknown = typeof metatype === 'function' ? metatype.prototype : null;
  if (typeof prototype !== 'object' || prototype === null) return false;
  return ['tx', 'isTransactionActive', 'withTransaction'].every((name) => name in prototype);
}

/** Until a host is made, Nest keeps an empty object of its class in its place, which knows of no transaction. */
const activeIn = (host: TransactionHost): unknown =>
  Object.keys(host).length > 0 && host.isTransactionActive() ? host.tx : undefined;

/**
 * A DataSource's usual manager has no runner. One whose runner was released comes from work that outlives its
 * transaction: handed on, it is refused, where a commit of our own would hide the missing `await`.
 */
function joinable(candidate: unknown, dataSource: DataSource): QueryExecutor | undefined {
  const manager = candidate as Partial<EntityManager> | null | undefined;
  // TypeORM 0.3 says `connection`.
  if (!manager || (manager.dataSource ?? manager.connection) !== dataSource) return undefined;
  const { queryRunner } = manager;
  return queryRunner?.isTransactionActive || queryRunner?.isReleased ? (manager as EntityManager) : undefined;
}
