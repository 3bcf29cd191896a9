// The sample as a newcomer runs it: compiled, in a process of its own, on a database of the run's server.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from '@jest/globals';
import { createTestDatabase } from '../support/database.js';

const program = fileURLToPath(new URL('../../dist-sample/02-transactional-outbox/main.js', import.meta.url));

describe('the transactional-outbox sample', () => {
  it('ends with books that balance, although workers were killed in the middle of payments', async () => {
    const database = await createTestDatabase();
    const child = spawn(process.execPath, [program], { env: { ...process.env, DATABASE_URL: database.url } });
    let output = '';
    child.stdout.on('data', (text) => (output += text));
    child.stderr.on('data', (text) => (output += text));
    const [code] = (await once(child, 'close')) as [number | null];
    expect({ code, output }).toMatchObject({ code: 0 });
    expect(output).toMatch(/charged twice +0\n/);
    expect(output).toMatch(/kills +4\n/);
    await database.drop();
  }, 120_000);
});
