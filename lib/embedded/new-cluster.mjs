// @ts-check
// A new cluster: initdb, and the environment it shares with the server.
import { spawn } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { codeOf, messageOf, program } from './binaries.mjs';
import { openFolder } from './data-folder.mjs';
import { DRAFT_INFIX } from './leftovers.mjs';
import { Refusal } from './refusal.mjs';
import { idsOf } from './server-user.mjs';

/** @typedef {import('./server-user.mjs').ServerUser} ServerUser */

const INITDB = ['-U', 'postgres', '-A', 'trust', '-E', 'UTF8', '--locale=C', '--no-instructions'];

/**
 * Makes a new cluster. It appears in one go: neither a second starter nor a kill in between leaves half of one.
 * @param {{ native: string, folder: string, user: ServerUser | null, durable: boolean, signal: AbortSignal }} cluster
 */
export async function createCluster({ native, folder, user, durable, signal }) {
  if (fs.existsSync(folder)) return fillFolder(native, folder, user, durable, signal); // may be a mount point
  makeParent(folder);
  const draft = fs.mkdtempSync(`${folder}${DRAFT_INFIX}`);
  try {
    await fillFolder(native, draft, user, durable, signal);
    fs.renameSync(draft, folder);
  } catch (error) {
    // Another starter was faster; its server is found by the next step.
    if (!['ENOTEMPTY', 'EEXIST'].includes(String(codeOf(error)))) throw error;
  } finally {
    fs.rmSync(draft, { recursive: true, force: true });
  }
}

/** @param {string} folder */
function makeParent(folder) {
  try {
    fs.mkdirSync(path.dirname(folder), { recursive: true });
    fs.accessSync(path.dirname(folder), fs.constants.W_OK);
  } catch (error) {
    throw new Refusal(
      'DATA_DIR_CLOSED',
      `Expected to create ${folder}, got: ${messageOf(error)}. Choose a dataDir that this user may write.`,
    );
  }
}

/**
 * @param {string} native
 * @param {string} folder
 * @param {ServerUser | null} user
 * @param {boolean} durable
 * @param {AbortSignal} signal
 */
async function fillFolder(native, folder, user, durable, signal) {
  openFolder(folder, user);
  const args = ['-D', folder, ...INITDB, ...(durable ? [] : ['--no-sync'])];
  const initdb = spawn(program(native, 'initdb'), args, {
    ...idsOf(user),
    cwd: path.parse(folder).root,
    env: serverEnvironment(),
    stdio: ['ignore', 'pipe', 'pipe'],
    signal,
  });
  let log = '';
  initdb.stdout.on('data', (text) => (log += text));
  initdb.stderr.on('data', (text) => (log += text));
  /** @type {Error | undefined} */
  let failure;
  initdb.on('error', (error) => (failure = error));
  const code = await new Promise((resolve) => initdb.on('close', resolve)); // its children have ended too
  if (code === 0) return;
  for (const name of fs.readdirSync(folder)) fs.rmSync(path.join(folder, name), { recursive: true, force: true });
  throw failure ?? new Refusal('INIT_FAILED', `Expected initdb to create ${folder}, got: ${log.trim()}`);
}

/** The environment without what would change the server: PGPORT, PGDATA, PGOPTIONS and their like, and the language. */
export function serverEnvironment() {
  const kept = Object.entries(process.env).filter(([name]) => !/^(PG|LC_|LANG)/.test(name));
  return { ...Object.fromEntries(kept), LC_ALL: 'C' };
}
