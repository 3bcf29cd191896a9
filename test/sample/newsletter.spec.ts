// The sample as a newcomer runs it: compiled, in a process of its own, with an embedded PostgreSQL of its own.
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { type AddressInfo, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, afterEach, beforeAll, describe, expect, it } from '@jest/globals';
import { createTestDatabase, eventually } from '../support/database.js';

const program = fileURLToPath(new URL('../../dist-sample/01-newsletter/main.js', import.meta.url));
let folder: string;
let file: string;
let running: Sample | undefined;

interface Sample {
  child: ChildProcess;
  output(): string;
  ended: Promise<{ code: number | null; signal: NodeJS.Signals | null }>;
}

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'millrace-sample-'));
  file = join(folder, 'recipients.csv');
  const people = ['ada', 'grace', 'busy.edsger', 'gone.alan', 'barbara', 'donald'];
  const rows = people.flatMap((name) => [`${name}@post.example,${name},free`, `${name}@acme.example,${name},team`]);
  writeFileSync(file, ['email,name,plan', ...rows].join('\n'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));
afterEach(async () => {
  running?.child.kill('SIGKILL');
  await running?.ended;
});

function start(args: string[], env: NodeJS.ProcessEnv = {}): Sample {
  const { DATABASE_URL: _url, ...inherited } = process.env;
  const child = spawn(process.execPath, [program, ...args], { env: { ...inherited, ...env } });
  let output = '';
  child.stdout.on('data', (text) => (output += text));
  child.stderr.on('data', (text) => (output += text));
  const ended = new Promise<{ code: number | null; signal: NodeJS.Signals | null }>((resolve) => {
    child.on('close', (code, signal) => resolve({ code, signal }));
  });
  running = { child, output: () => output, ended };
  return running;
}

describe('the newsletter sample', () => {
  it('ends with a table that agrees', async () => {
    const sample = start([file]);
    expect({ ...(await sample.ended), output: sample.output() }).toMatchObject({ code: 0 });
    expect(sample.output()).toMatch(/delivered +12\n/); // ten of twelve recipients, two welcome mails
    expect(sample.output()).toMatch(/refused for good +2\n/);
    expect(sample.output()).not.toContain('FAIL');
  }, 60_000);

  it('uses the server that DATABASE_URL names', async () => {
    const database = await createTestDatabase();
    const sample = start([file], { DATABASE_URL: database.url });
    expect({ ...(await sample.ended), output: sample.output() }).toMatchObject({ code: 0 });
    const { rows } = await database.pool.query('select email from subscribers order by email');
    expect(rows).toEqual([{ email: 'ada@analytical.example' }, { email: 'grace@compilers.example' }]);
    await database.drop();
  }, 60_000);

  it('says what is wrong with a file that does not exist, and ends', async () => {
    const sample = start([join(folder, 'missing.csv')]);
    expect(await sample.ended).toMatchObject({ code: 1 });
    expect(sample.output()).toContain('missing.csv');
  }, 60_000);

  it('says that its port is taken, and ends', async () => {
    const other = createServer();
    await new Promise<void>((resolve) => other.listen(0, '127.0.0.1', resolve));
    const { port } = other.address() as AddressInfo;
    const sample = start([file, '--serve'], { PORT: String(port) });
    expect(await sample.ended).toMatchObject({ code: 1 });
    expect(sample.output()).toContain(`Port ${port} is taken`);
    await new Promise((resolve) => other.close(resolve));
  }, 60_000);

  it('leaves no process behind on Ctrl-C', async () => {
    const sample = start([file, '--serve'], { PORT: '0' });
    await eventually(() => sample.output().includes('Serving'), { timeoutMs: 30_000 });
    const started = await descendants(sample.child.pid!);
    expect(started.length).toBeGreaterThan(0);
    sample.child.kill('SIGINT');
    await sample.ended;
    await eventually(() => started.every((pid) => !isAlive(pid)));
  }, 60_000);
});

/** Processes below a process; the database's supervisor and server among them. */
async function descendants(pid: number): Promise<number[]> {
  const ps = spawn('ps', ['-e', '-o', 'pid=,ppid=']);
  let text = '';
  ps.stdout.on('data', (part) => (text += part));
  await new Promise((resolve) => ps.on('close', resolve));
  const pairs = text
    .trim()
    .split('\n')
    .map((line) => line.trim().split(/\s+/).map(Number) as [number, number]);
  const below = (parent: number): number[] =>
    pairs.filter(([, ppid]) => ppid === parent).flatMap(([child]) => [child, ...below(child)]);
  return below(pid);
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}
