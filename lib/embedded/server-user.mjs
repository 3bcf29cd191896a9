// @ts-check
// PostgreSQL refuses to run as root. It then runs as another user, which must have access to its files.
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { Refusal } from './refusal.mjs';

/** @typedef {{ name: string, uid: number, gid: number }} ServerUser */

/**
 * The user to run the server as; `null`: the user of this process.
 * @returns {ServerUser | null}
 */
export function serverUser() {
  if (process.getuid?.() !== 0) return null;
  for (const name of ['postgres', 'nobody']) {
    const [uid, gid] = ['-u', '-g'].map((flag) => spawnSync('id', [flag, name], { encoding: 'utf8' }));
    if (uid?.status === 0 && gid?.status === 0) return { name, uid: Number(uid.stdout), gid: Number(gid.stdout) };
  }
  throw new Refusal(
    'NO_USER',
    'Expected a user "postgres" or "nobody" to run PostgreSQL, which refuses to run as root; got neither. Create one ' +
      '(`useradd --system postgres`), or start this program as another user.',
  );
}

/**
 * The first file or folder on the way down to `target` that the user may not pass; `null`: the way is open. Asked as
 * that user, so that groups and access lists count too.
 * @param {string} target
 * @param {ServerUser | null} user
 * @returns {string | null}
 */
export function closedPart(target, user) {
  if (!user) return null;
  const parts = [target];
  while (parts[0] !== path.dirname(String(parts[0]))) parts.unshift(path.dirname(String(parts[0])));
  const script = 'for part; do test -x "$part" || { printf %s "$part"; exit; }; done';
  const { stdout, error } = spawnSync('/bin/sh', ['-c', script, 'sh', ...parts], {
    ...idsOf(user),
    cwd: '/',
    encoding: 'utf8',
  });
  if (error) throw new Refusal('NO_USER', `Expected to become user "${user.name}", got: ${error.message}.`);
  return stdout || null;
}

/**
 * @param {string} entry with all that is in it
 * @param {ServerUser | null} user
 */
export function giveTo(entry, user) {
  if (!user) return;
  const { uid, gid } = fs.lstatSync(entry);
  if (uid !== user.uid || gid !== user.gid) fs.lchownSync(entry, user.uid, user.gid);
  if (!fs.lstatSync(entry).isDirectory()) return;
  for (const name of fs.readdirSync(entry)) giveTo(path.join(entry, name), user);
}

/** @param {ServerUser | null} user */
export const idsOf = (user) => (user ? { uid: user.uid, gid: user.gid } : {});
