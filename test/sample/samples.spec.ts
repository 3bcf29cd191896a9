// The samples as a newcomer runs them: compiled, in processes of their own, on a database of the run's server.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from '@jest/globals';
import { createTestDatabase } from '../support/database.js';

/** Runs a sample to its end, or until its output has what is given: then it gets a SIGINT. */
async function run(name: string, { until }: { until?: RegExp } = {}): Promise<{ code: number | null; output: string }> {
  const database = await createTestDatabase();
  const program = fileURLToPath(new URL(`../../dist-sample/${name}/main.js`, import.meta.url));
  const child = spawn(process.execPath, [program], { env: { ...process.env, DATABASE_URL: database.url } });
  let output = '';
  child.stdout.on('data', (text) => {
    output += text;
    if (!until?.test(output)) return;
    until = undefined;
    child.kill('SIGINT');
  });
  child.stderr.on('data', (text) => (output += text));
  const [code] = (await once(child, 'close')) as [number | null];
  await database.drop();
  return { code, output };
}

describe('the samples', () => {
  it('transactional outbox: the books balance, although workers were killed in the middle of payments', async () => {
    const { code, output } = await run('02-transactional-outbox');
    expect({ code, output }).toMatchObject({ code: 0 });
    expect(output).toMatch(/charged twice +0\n/);
    expect(output).toMatch(/kills +4\n/);
  }, 120_000);

  it('steps and crons: every order is charged once, every second counted once', async () => {
    const { code, output } = await run('03-steps-and-crons');
    expect({ code, output }).toMatchObject({ code: 0 });
    expect(output).toMatch(/orders 30, charges 30, parcels 30/);
  }, 120_000);

  it('tenants: a noisy one does not make the others wait, and every page is rendered', async () => {
    const { code, output } = await run('04-tenants');
    expect({ code, output }).toMatchObject({ code: 0 });
    expect(output).toMatch(/acme +0 +3,000/);
    expect(output).not.toContain('\u001b');
  }, 120_000);

  it('tenants: Ctrl-C ends it, and tells that pages are left', async () => {
    const { code, output } = await run('04-tenants', { until: /acme +[\d,]+ +\d+/ });
    expect({ code, output }).toMatchObject({ code: 0 });
    expect(output).toContain('Stopped');
  }, 120_000);
});
