// The migrations' SQL, which the package carries as files beside its code.
import { readdirSync, readFileSync } from 'node:fs';
import { JobsError } from '../jobs.errors.js';

/** Files of the package are not where its code is: it was bundled. See docs/bundlers.md. */
export class PackageFilesMissingError extends JobsError {
  readonly code = 'ERR_JOBS_PACKAGE_FILES_MISSING';
}

const folderOf = (name: string): URL => new URL(`./migrations/${name}/`, import.meta.url);

/** A migration is read in the order of its files' numbers. */
export const stepsOf = (name: string): string[] =>
  fromPackage(name, () => readdirSync(folderOf(name)))
    .filter((file) => /^\d+_\w+\.sql$/.test(file))
    .sort();

export const readFiles = (name: string, files: string[]): string =>
  files.map((file) => fromPackage(file, () => readFileSync(new URL(file, folderOf(name)), 'utf8'))).join('\n');

function fromPackage<T>(file: string, work: () => T): T {
  try {
    return work();
  } catch (cause) {
    throw new PackageFilesMissingError(
      `Expected ${file} among the package's files, got none beside ${import.meta.url}: a bundler has put millrace into a ` +
        'bundle without its migrations and its heartbeat thread. Keep it out of the bundle: `externals` of webpack, ' +
        '`--external:millrace` of esbuild; see docs/bundlers.md.',
      { cause },
    );
  }
}
