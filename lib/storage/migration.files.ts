// The migrations' SQL, which the package carries as files beside its code.
import { accessSync, readFileSync } from 'node:fs';
import { JobsError } from '../jobs.errors.js';

/** Files of the package are not where its code is: it was bundled. See docs/bundlers.md. */
export class PackageFilesMissingError extends JobsError {
  readonly code = 'ERR_JOBS_PACKAGE_FILES_MISSING';
}

export interface Migration {
  version: number;
  name: string;
  /**
   * The oldest version whose processes go on working after this migration: its own where it takes something away
   * (contracts), an earlier one where it only adds (expands). See docs/upgrading.md.
   */
  compatibleFrom: number;
  /**
   * Each file by its whole name: webpack takes a file along where it reads just that. Where a bundler has left no URL of
   * this module, asking for them throws.
   */
  up: () => URL[];
  down: () => URL[];
}

/** In order; a released migration is never edited. */
export const MIGRATIONS: Migration[] = [
  {
    version: 1,
    name: '0001_initial',
    compatibleFrom: 1,
    up: () => [
      new URL('./migrations/0001_initial/1_tables.sql', import.meta.url),
      new URL('./migrations/0001_initial/1_tokens.sql', import.meta.url),
      new URL('./migrations/0001_initial/2_claim.sql', import.meta.url),
      new URL('./migrations/0001_initial/3_settle.sql', import.meta.url),
      new URL('./migrations/0001_initial/4_ends.sql', import.meta.url),
      new URL('./migrations/0001_initial/5_upkeep.sql', import.meta.url),
      new URL('./migrations/0001_initial/6_partitions.sql', import.meta.url),
      new URL('./migrations/0001_initial/7_enqueue.sql', import.meta.url),
      new URL('./migrations/0001_initial/8_bulk.sql', import.meta.url),
    ],
    down: () => [new URL('./migrations/0001_initial/down.sql', import.meta.url)],
  },
];

/** @throws PackageFilesMissingError */
export const readSql = (files: () => URL[]): string =>
  fromPackage(() =>
    files()
      .map((file) => readFileSync(file, 'utf8'))
      .join('\n'),
  );

/** Found out at once, not when the first migration or the heartbeat is needed. @throws PackageFilesMissingError */
export const assertPackageFiles = (): void =>
  fromPackage(() => {
    for (const { up } of MIGRATIONS) for (const file of up()) accessSync(file);
  });

function fromPackage<T>(work: () => T): T {
  try {
    return work();
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new PackageFilesMissingError(
      `Expected the migrations among the package's files, got: ${reason}. A bundler has put millrace into a bundle ` +
        'without its migrations and its heartbeat thread. Keep it out of the bundle: `externals` of webpack, ' +
        '`--external:millrace` of esbuild; see docs/bundlers.md.',
      { cause },
    );
  }
}
