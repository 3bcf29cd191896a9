// The command line as it is installed: compiled, in a process of its own.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import { createTestDatabase, type TestDatabase } from '../support/database.js';

const program = fileURLToPath(new URL('../../dist/cli.js', import.meta.url));
let database: TestDatabase;

beforeEach(async () => {
  database = await createTestDatabase();
});
afterEach(() => database.drop());

async function millrace(args: string[], env: NodeJS.ProcessEnv = { DATABASE_URL: database.url }) {
  const { DATABASE_URL: _url, ...inherited } = process.env;
  const child = spawn(process.execPath, [program, ...args], { env: { ...inherited, ...env } });
  let output = '';
  child.stdout.on('data', (text) => (output += text));
  child.stderr.on('data', (text) => (output += text));
  const [code] = (await once(child, 'close')) as [number];
  return { code, output };
}

describe('millrace on the command line', () => {
  it('migrates and destroys everything, any number of times', async () => {
    expect(await millrace(['version'])).toEqual({ code: 0, output: '0\n' });
    for (const _ of [1, 2]) expect(await millrace(['migrate'])).toMatchObject({ code: 0 });
    expect((await millrace(['version'])).output).toMatch(/^[1-9]\d*\n$/);
    for (const _ of [1, 2]) expect(await millrace(['destroy-everything', '--yes'])).toMatchObject({ code: 0 });
    expect(await millrace(['version'])).toEqual({ code: 0, output: '0\n' });
  });

  it.each(['rollback', 'destroy-everything'])(
    '%s removes nothing without --yes, and says what it would',
    async (name) => {
      await millrace(['migrate', '--schema', 'shop']);
      const { code, output } = await millrace([name, '--schema', 'shop']);
      expect([code, output]).toEqual([
        2,
        expect.stringMatching(/every job and the whole history in schema "shop".*--yes/),
      ]);
      expect((await millrace(['version', '--schema', 'shop'])).output).toMatch(/^[1-9]/);
      expect(await millrace([name, '--yes', '--schema', 'shop'])).toMatchObject({ code: 0 });
      expect((await millrace(['version', '--schema', 'shop'])).output).toBe('0\n');
    },
  );

  it.each([['--help'], ['-h'], ['help'], ['migrate', '--help']])('prints the usage: %s %s', async (...args) => {
    const { code, output } = await millrace(args, {});
    expect([code, output]).toEqual([0, expect.stringMatching(/^Usage: millrace/)]);
  });

  it('prints the version of the package, which needs no database', async () => {
    const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as {
      version: string;
    };
    for (const flag of ['--version', '-v'])
      expect(await millrace([flag], {})).toEqual({ code: 0, output: `${version}\n` });
  });

  it('takes connection and schema as options', async () => {
    const args = ['--connection', database.url, '--schema', 'my "Jobs"'];
    expect(await millrace(['migrate', ...args], {})).toMatchObject({ code: 0 });
    const { rows } = await database.pool.query(`select from pg_namespace where nspname = 'my "Jobs"'`);
    expect(rows).toHaveLength(1);
  });

  it('gives a role its rights and takes them away', async () => {
    const role = `role_${process.pid}`;
    const may = async (): Promise<unknown> =>
      (await database.pool.query(`select has_schema_privilege($1, 'jobs', 'usage') as may`, [role])).rows[0].may;
    await database.pool.query(`create role ${role}`);
    try {
      expect(await millrace(['grant', 'worker', role])).toMatchObject({
        code: 1,
        output: expect.stringContaining('at version'),
      });
      await millrace(['migrate']);
      expect(await millrace(['grant', 'worker', role])).toMatchObject({ code: 0 });
      expect(await may()).toBe(true);
      expect(await millrace(['revoke', role])).toMatchObject({ code: 0 });
      expect(await may()).toBe(false);
      expect(await millrace(['grant', 'root', role])).toMatchObject({
        code: 1,
        output: expect.stringContaining('root'),
      });
      expect(await millrace(['grant', 'worker', 'nobody at all'])).toMatchObject({ code: 1 });
    } finally {
      await database.pool.query(`drop owned by ${role}; drop role ${role}`);
    }
  });

  it('explains what a wrong call lacks', async () => {
    expect(await millrace(['grant', 'worker'])).toMatchObject({ code: 2 });
    expect(await millrace(['revoke'])).toMatchObject({ code: 2 });
    expect(await millrace([])).toMatchObject({ code: 2, output: expect.stringContaining('Usage: millrace') });
    expect(await millrace(['destroy'])).toMatchObject({ code: 2, output: expect.stringContaining('"destroy"') });
    expect(await millrace(['migrat'])).toMatchObject({
      code: 2,
      output: expect.stringContaining('did you mean migrate?'),
    });
    expect(await millrace(['migrate'], {})).toMatchObject({ code: 2, output: expect.stringContaining('DATABASE_URL') });
    for (const [args, fault] of [
      [['migrate', '--schem', 'x'], 'Unknown option --schem; did you mean --schema?'],
      [['migrat'], 'Unknown command "migrat"; did you mean migrate?'],
      [['migrate', '--wait', 'soon'], 'Expected --wait to be an integer from 0 to'],
      [['migrate', 'jobs'], 'Expected 0 words behind migrate, got 1'],
    ] as const) {
      expect(await millrace([...args])).toMatchObject({ code: 2, output: expect.stringContaining(fault) });
    }
  });

  it('says why it could not, without the password', async () => {
    const url = 'postgres://user:secret@127.0.0.1:1/none';
    const { code, output } = await millrace(['migrate', '--connection', url]);
    expect([code, output]).toEqual([1, expect.stringContaining('cannot be reached')]);
    expect(output).not.toContain('secret');
  });
});
