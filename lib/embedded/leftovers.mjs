// @ts-check
// What earlier servers left behind when nothing was left to clean up after them: a power cut, a SIGKILL of everything.
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { runningServer } from './data-folder.mjs';

/** How temporary folders begin. */
export const TEMPORARY_PREFIX = 'millrace-pg-';
/** What stands between a data folder's name and the rest of its draft's. */
export const DRAFT_INFIX = '.init-';
/** Longer than any initdb takes; a supervisor touches its temporary folder far more often. */
const OLD_MS = 3_600_000;
const TOUCH_MS = 60_000;

/**
 * Keeps a temporary folder from being taken for a leftover.
 * @param {string} folder
 */
export function keepFresh(folder) {
  setInterval(() => {
    const now = new Date();
    fs.utimes(folder, now, now, () => undefined);
  }, TOUCH_MS).unref();
}

/**
 * Removes what is old and belongs to no server that runs. What belongs to other users stays.
 * @param {string | undefined} dataDir
 */
export function removeLeftovers(dataDir) {
  remove(fs.realpathSync(os.tmpdir()), TEMPORARY_PREFIX);
  if (dataDir !== undefined) remove(path.dirname(dataDir), `${path.basename(dataDir)}${DRAFT_INFIX}`);
}

/**
 * @param {string} parent
 * @param {string} prefix
 */
function remove(parent, prefix) {
  const names = listed(parent).filter((name) => name.startsWith(prefix));
  for (const folder of names.map((name) => path.join(parent, name))) {
    try {
      const inUse = [folder, path.join(folder, 'data')].some((data) => runningServer(data));
      const old = fs.statSync(folder).mtimeMs < Date.now() - OLD_MS;
      if (old && !inUse) fs.rmSync(folder, { recursive: true, force: true });
    } catch {
      // Not ours to remove.
    }
  }
}

/** @param {string} folder */
function listed(folder) {
  try {
    return fs.readdirSync(folder);
  } catch {
    return [];
  }
}
