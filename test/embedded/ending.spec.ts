// However the program ends, its PostgreSQL ends with it and leaves nothing behind.
import fs from 'node:fs';
import path from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from '@jest/globals';
import { startEmbeddedPostgres } from '../../lib/embedded.js';
import { eventually } from '../support/database.js';
import { ask, isAlive, parentOf, removeLibrary, Workspace } from './harness.js';

let workspace: Workspace;
/** A cluster that is there already starts faster. */
let home: Workspace;
let kept: string;
beforeAll(async () => {
  home = new Workspace();
  kept = path.join(home.path, 'kept');
  await (await startEmbeddedPostgres({ dataDir: kept })).stop();
});
beforeEach(() => {
  workspace = new Workspace();
});
afterEach(() => workspace.close());
afterAll(async () => {
  await home.close();
  removeLibrary();
});

async function nothingIsLeft(): Promise<void> {
  await eventually(() => workspace.leftovers().length === 0).catch(() => undefined);
  expect(workspace.leftovers()).toEqual([]);
}

const initdbIsAtWork = (): boolean => {
  const [temporary] = fs.readdirSync(workspace.tmp);
  const [draft] = temporary === undefined ? [] : fs.readdirSync(path.join(workspace.tmp, temporary));
  return draft !== undefined && fs.readdirSync(path.join(workspace.tmp, temporary!, draft)).length > 0;
};

it('a server that is stopped leaves no process and no file, and can be stopped twice', async () => {
  const postgres = await startEmbeddedPostgres();
  const supervisor = parentOf(postgres.pid);
  expect(await ask(postgres.url, 'select 1 as one')).toEqual({ one: 1 });

  await Promise.all([postgres.stop(), postgres.stop()]);
  await postgres.stop();

  expect([postgres.pid, supervisor].map(isAlive)).toEqual([false, false]);
  expect(workspace.leftovers()).toEqual([]);
});

it('three servers at once are independent', async () => {
  const servers = await Promise.all([startEmbeddedPostgres(), startEmbeddedPostgres(), startEmbeddedPostgres()]);
  await servers[0].stop();
  const answers = await Promise.all(servers.slice(1).map(({ url }) => ask(url, 'select 1 as one')));
  await Promise.all(servers.map((server) => server.stop()));
  expect(answers).toEqual([{ one: 1 }, { one: 1 }]);
});

describe('nothing is left of the server when the program', () => {
  it.each([
    ['is killed', 'wait', 'SIGKILL', { signal: 'SIGKILL' }],
    ['calls process.exit', 'exit', null, { code: 3 }],
  ] as const)('%s', async (_, behaviour, signal, end) => {
    const program = await workspace.run(behaviour);
    if (signal) program.child.kill(signal);
    expect(await program.exited).toMatchObject(end);
    await nothingIsLeft();
  });

  it.each([
    ['is ended by SIGTERM', 'wait', 'SIGTERM', { signal: 'SIGTERM' }],
    ['is ended by SIGINT', 'wait', 'SIGINT', { signal: 'SIGINT' }],
    ['throws an uncaught error', 'throw', null, { code: 1 }],
    ['has nothing more to do', 'end', null, { code: 0 }],
  ] as const)('%s', async (_, behaviour, signal, end) => {
    const program = await workspace.run(behaviour, { dataDir: kept });
    if (signal) program.child.kill(signal);
    expect(await program.exited).toMatchObject(end);
    await nothingIsLeft();
    expect(fs.existsSync(path.join(kept, 'postmaster.pid'))).toBe(false);
  });

  it('is killed while the cluster is being made', async () => {
    const program = workspace.launch('wait');
    await eventually(initdbIsAtWork);
    program.child.kill('SIGKILL');
    expect(await program.exited).toMatchObject({ signal: 'SIGKILL' });
    await nothingIsLeft();
  });
});

describe('the database is there until the program has drained', () => {
  it.each(['SIGINT', 'SIGTERM'] as const)('after %s to its whole process group, as from Ctrl-C', async (signal) => {
    const program = await workspace.run('drain', { dataDir: kept });
    process.kill(-program.child.pid!, signal);
    expect(await program.news()).toEqual({ drained: 5 });
    expect(await program.exited).toEqual({ code: 0, signal: null });
    await nothingIsLeft();
  });

  it('after SIGTERM to every Node process, its supervisor too', async () => {
    const program = await workspace.run('drain', { dataDir: kept });
    process.kill(parentOf(program.latest.pid), 'SIGTERM');
    program.child.kill('SIGTERM');
    expect(await program.news()).toEqual({ drained: 5 });
    await program.exited;
    await nothingIsLeft();
  });
});

it('a server that dies takes its supervisor and its files with it', async () => {
  const postgres = await startEmbeddedPostgres();
  const supervisor = parentOf(postgres.pid);
  process.kill(postgres.pid, 'SIGKILL');
  await eventually(() => !isAlive(supervisor));
  expect(workspace.leftovers()).toEqual([]);
  await postgres.stop();
});

it.each([
  ['temporary data', false],
  ['kept data', true],
])('a server whose supervisor was killed goes on, and is gone when stop() resolves: %s', async (_, keeps) => {
  const postgres = await startEmbeddedPostgres(keeps ? { dataDir: kept } : {});
  process.kill(parentOf(postgres.pid), 'SIGKILL');
  await eventually(async () => (await ask(postgres.url, 'select 1 as one'))?.one === 1);
  await Promise.all([postgres.stop(), postgres.stop()]);
  await expect(ask(postgres.url, 'select 1')).rejects.toThrow('ECONNREFUSED');
  expect(fs.existsSync(path.join(kept, 'postmaster.pid'))).toBe(false);
  expect(workspace.leftovers()).toEqual([]);
});

it('a server whose supervisor was killed ends with its program, where that ends by itself', async () => {
  const program = await workspace.run('drain');
  process.kill(parentOf(program.latest.pid), 'SIGKILL');
  await eventually(() => !isAlive(program.pids[1]!));
  program.child.kill('SIGTERM');
  expect(await program.news()).toEqual({ drained: 5 });
  await program.exited;
  await nothingIsLeft();
});

it('what a power cut left behind is removed by a later start; what may be in use stays', async () => {
  const hoursAgo = new Date(Date.now() - 2 * 3_600_000);
  const leave = (folder: string, old: boolean, postmaster?: number): string => {
    fs.mkdirSync(path.join(folder, 'data'), { recursive: true });
    if (postmaster) fs.writeFileSync(path.join(folder, 'data/postmaster.pid'), `${postmaster}\n`);
    if (old) fs.utimesSync(folder, hoursAgo, hoursAgo);
    return folder;
  };
  const other = await startEmbeddedPostgres();
  const gone = [leave(path.join(workspace.tmp, 'millrace-pg-cut'), true), leave(`${kept}.init-cut`, true)];
  const staying = [
    leave(path.join(workspace.tmp, 'millrace-pg-new'), false),
    leave(path.join(workspace.tmp, 'millrace-pg-runs'), true, other.pid),
    leave(path.join(workspace.tmp, 'other-program'), true),
    leave(`${kept}.init-new`, false),
  ];
  await (await startEmbeddedPostgres({ dataDir: kept })).stop();
  expect(gone.filter((folder) => fs.existsSync(folder))).toEqual([]);
  expect(staying.filter((folder) => !fs.existsSync(folder))).toEqual([]);
  await other.stop();
  for (const folder of staying) fs.rmSync(folder, { recursive: true });
});

it('what NODE_OPTIONS loads into the program is not loaded into the supervisor', async () => {
  const loaded = `${workspace.path}/loaded`;
  const script = `${workspace.path}/instrument.cjs`;
  fs.writeFileSync(script, `require('fs').appendFileSync(${JSON.stringify(loaded)}, process.argv[1] + '\\n')`);
  await workspace.run('exit', {}, { env: { NODE_OPTIONS: `--require ${script}` } });
  expect(fs.readFileSync(loaded, 'utf8')).toMatch(/^\S+program\.mjs\n$/);
});
