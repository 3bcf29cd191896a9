// A kept data folder survives restarts, is used by one server at a time, and is never taken from another user.
import fs from 'node:fs';
import path from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from '@jest/globals';
import { startEmbeddedPostgres } from '../../lib/embedded.js';
import { eventually } from '../support/database.js';
import { ask, isAlive, isRoot, parentOf, refusalOf, removeLibrary, Workspace } from './harness.js';

const NOBODY = 65_534;
let workspace: Workspace;
/** A folder that does not exist yet. */
let dataDir: string;
beforeEach(() => {
  workspace = new Workspace();
  dataDir = path.join(workspace.path, 'var/data');
});
afterEach(() => workspace.close());
afterAll(removeLibrary);

describe('kept data', () => {
  let home: Workspace;
  let kept: string;
  beforeAll(async () => {
    home = new Workspace();
    kept = path.join(home.path, 'var/data');
    const first = await startEmbeddedPostgres({ dataDir: kept });
    await ask(first.url, 'create table answers as select 42 as answer');
    await first.stop();
  });
  afterAll(() => home.close());

  /** What the next start on the folder finds. */
  async function answerOf(options: { port?: number } = {}): Promise<unknown> {
    const postgres = await startEmbeddedPostgres({ dataDir: kept, ...options });
    const row = await ask(postgres.url, 'select answer, current_setting($$fsync$$) as fsync from answers');
    await postgres.stop();
    return row;
  }

  it('survive a restart, and are written durably', async () => {
    expect(await answerOf()).toEqual({ answer: 42, fsync: 'on' });
    expect(fs.readdirSync(path.dirname(kept))).toEqual(['data']);
  });

  it('are used by one server at a time: a second start is refused and names the first', async () => {
    const first = await startEmbeddedPostgres({ dataDir: kept });
    const refusal = await refusalOf({ dataDir: kept });
    expect(refusal).toMatchObject({ code: 'ERR_JOBS_EMBEDDED_POSTGRES', reason: 'DATA_DIR_IN_USE' });
    expect(refusal.message).toContain(`process ${first.pid}, port ${first.port}`);
    expect(await ask(first.url, 'select 1 as one')).toEqual({ one: 1 });
    await first.stop();
  });

  it('are there at once when a program is killed and restarted on the same port', async () => {
    const program = await workspace.run('wait', { dataDir: kept });
    program.child.kill('SIGKILL');
    expect(await answerOf({ port: program.latest.port })).toMatchObject({ answer: 42 });
  });

  it('survive a kill of server and supervisor, which leave postmaster.pid behind', async () => {
    const killed = await startEmbeddedPostgres({ dataDir: kept });
    process.kill(parentOf(killed.pid), 'SIGKILL');
    process.kill(killed.pid, 'SIGKILL');
    await eventually(() => !isAlive(killed.pid));
    expect(fs.existsSync(path.join(kept, 'postmaster.pid'))).toBe(true);
    expect(await answerOf()).toMatchObject({ answer: 42 });
  });
});

describe('a new folder', () => {
  it('on which two programs start at once is given to one of them', async () => {
    const starts = await Promise.allSettled([startEmbeddedPostgres({ dataDir }), startEmbeddedPostgres({ dataDir })]);
    const winners = starts.filter((start) => start.status === 'fulfilled').map(({ value }) => value);
    const losers = starts.filter((start) => start.status === 'rejected').map(({ reason }) => reason as unknown);
    await Promise.all(winners.map((postgres) => postgres.stop()));
    expect(winners).toHaveLength(1);
    expect(losers).toMatchObject([{ reason: 'DATA_DIR_IN_USE' }]);
    expect(fs.readdirSync(path.dirname(dataDir))).toEqual(['data']);
  });

  it('is made whole or not at all when the program is killed meanwhile', async () => {
    const program = workspace.launch('wait', { dataDir });
    const home = path.dirname(dataDir);
    const drafts = (): string[] => (fs.existsSync(home) ? fs.readdirSync(home) : []);
    await eventually(() => drafts().some((draft) => fs.readdirSync(path.join(home, draft)).length > 0));
    program.child.kill('SIGKILL');
    await program.exited;
    await eventually(() => drafts().length === 0);
    expect(fs.existsSync(dataDir)).toBe(false);
  });
});

it('a folder of another major version is refused, naming both', async () => {
  fs.mkdirSync(dataDir, { recursive: true });
  fs.writeFileSync(path.join(dataDir, 'PG_VERSION'), '12\n');
  const refusal = await refusalOf({ dataDir });
  expect(refusal.reason).toBe('DATA_DIR_VERSION');
  expect(refusal.message).toMatch(/data of PostgreSQL \d\d, .* was made by PostgreSQL 12\. Install/);
});

it('a folder that holds something else is refused and left as it is', async () => {
  fs.mkdirSync(dataDir, { recursive: true });
  fs.writeFileSync(path.join(dataDir, 'letter.txt'), 'dear Ada');
  const { uid, mode } = fs.statSync(dataDir);
  const refusal = await refusalOf({ dataDir });
  expect(refusal.reason).toBe('DATA_DIR_FOREIGN');
  expect(refusal.message).toContain('letter.txt');
  expect(fs.statSync(dataDir)).toMatchObject({ uid, mode });
});

(isRoot ? describe : describe.skip)('with more than one user, a folder', () => {
  it('that the server’s user cannot reach is refused, naming what to open', async () => {
    const closed = path.join(workspace.path, 'closed');
    fs.mkdirSync(closed, { mode: 0o700 });
    const refusal = await refusalOf({ dataDir: path.join(closed, 'data') });
    expect(refusal.reason).toBe('DATA_DIR_CLOSED');
    expect(refusal.message).toContain(`chmod o+x ${closed}`);
    expect(fs.readdirSync(closed)).toEqual([]);
  });

  it('of another user is refused, naming both', async () => {
    fs.mkdirSync(dataDir, { recursive: true });
    const program = await workspace.run('wait', { dataDir }, { uid: NOBODY, gid: NOBODY });
    expect(program.latest).toMatchObject({ name: 'EmbeddedPostgresError', reason: 'DATA_DIR_OWNER' });
    expect(program.latest.message).toMatch(/\(id 65534\), but it belongs to id 0; .*chown -R 65534/);
  });
});
