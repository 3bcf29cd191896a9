import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { expect, it } from '@jest/globals';
import { createTestDatabase } from '../support/database.js';

const run = promisify(execFile);
const program = fileURLToPath(new URL('small.heap.mjs', import.meta.url));

/** Less than what the jobs weigh together, and half of it with what they give back. */
const HEAP = '--max-old-space-size=128';

it('a process with a heap of 128 MB works over payloads, results and progress of a mebibyte', async () => {
  const database = await createTestDatabase();
  try {
    const env = { ...process.env, DATABASE_URL: database.url, NODE_OPTIONS: '' };
    const { stdout } = await run(process.execPath, [HEAP, program], { env });
    expect(JSON.parse(stdout)).toEqual({ ran: 132 });
  } finally {
    await database.drop();
  }
}, 240_000);
