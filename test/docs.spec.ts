// Every ts block of README and docs is type-checked and run. A block with imports is a module; one without is a
// fragment, which finds `jobs`, `dataSource` and `pool` around it.
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it, jest } from '@jest/globals';
import pg from 'pg';
import { DataSource } from 'typeorm';
import ts from 'typescript';
import { createJobManager, type JobManager } from '../lib/index.js';
import { createTestDatabase } from './support/database.js';
// Loaded here once, so that the blocks can import them.
import './support/nestjs-cls.js';

const root = fileURLToPath(new URL('..', import.meta.url));
const cache = join(root, '.cache/docs');
const pages = ['README.md', ...readdirSync(join(root, 'docs')).map((name) => `docs/${name}`)].filter((name) =>
  name.endsWith('.md'),
);

interface Block {
  title: string;
  file: string;
  fragment: boolean;
}

const PRELUDE = `
import type { JobManager } from 'millrace';
import type pg from 'pg';
import type { DataSource } from 'typeorm';
const given = globalThis as unknown as { docs: { jobs: JobManager; dataSource: DataSource; pool: pg.Pool } };
export const { jobs, dataSource, pool } = given.docs;
`;

function blocksOf(page: string): Block[] {
  const text = readFileSync(join(root, page), 'utf8');
  const folder = join(cache, page.replace(/\W/g, '-'));
  mkdirSync(folder, { recursive: true });
  return [...text.matchAll(/^```ts\n([\s\S]*?)^```$/gm)].map((match, index) => {
    // Modules that start by themselves are waited for.
    const code = match[1]!.replace(/^void main\(\);$/m, 'await main();');
    const line = text.slice(0, match.index).split('\n').length;
    const name = /^\/\/ ([\w.-]+)\.ts\n/.exec(code)?.[1] ?? `block-${index + 1}`;
    const fragment = !/^(import|export) /m.test(code);
    const file = join(folder, `${name}.ts`);
    const wrapped = `import { dataSource, jobs, pool } from '../prelude.js';\nvoid dataSource, jobs, pool;\nexport default async (): Promise<void> => {\n${code}};\n`;
    writeFileSync(file, fragment ? wrapped : code);
    return { title: `${page}:${line}`, file, fragment };
  });
}

rmSync(cache, { recursive: true, force: true });
mkdirSync(cache, { recursive: true });
writeFileSync(join(cache, 'prelude.ts'), PRELUDE);
const blocks = pages.flatMap(blocksOf);

describe('the code in README and docs', () => {
  let database: Awaited<ReturnType<typeof createTestDatabase>>;
  let jobs: JobManager;
  let dataSource: DataSource;
  let pool: pg.Pool;
  const url = process.env.DATABASE_URL;

  beforeAll(async () => {
    database = await createTestDatabase();
    process.env.DATABASE_URL = database.url;
    jobs = await createJobManager({ connection: database.url });
    dataSource = await new DataSource({ type: 'postgres', url: database.url }).initialize();
    pool = new pg.Pool({ connectionString: database.url });
    (globalThis as Record<string, unknown>).docs = { jobs, dataSource, pool };
    jest.spyOn(console, 'log').mockImplementation(() => undefined);
  });
  afterAll(async () => {
    jest.restoreAllMocks();
    if (url === undefined) delete process.env.DATABASE_URL;
    else process.env.DATABASE_URL = url;
    await pool.end();
    await dataSource.destroy();
    await jobs.close();
    await database.drop();
  });

  it('passes the compiler', () => {
    const config = ts.readConfigFile(join(root, 'tsconfig.json'), (path) => readFileSync(path, 'utf8'))
      .config as object;
    const { options } = ts.parseJsonConfigFileContent(config, ts.sys, root);
    const paths = { millrace: ['./lib/index.ts'], 'millrace/*': ['./lib/*.ts'] };
    const program = ts.createProgram(
      blocks.map(({ file }) => file),
      { ...options, paths, noEmit: true },
    );
    const messages = ts.getPreEmitDiagnostics(program).map(({ file, start, messageText }) => {
      const position = file && start !== undefined ? file.getLineAndCharacterOfPosition(start).line + 1 : 0;
      return `${file ? relative(root, file.fileName) : ''}:${position} ${ts.flattenDiagnosticMessageText(messageText, '\n')}`;
    });
    expect(messages).toEqual([]);
  }, 60_000);

  it.each(blocks)('runs: $title', async ({ file, fragment }) => {
    const module = (await import(file)) as { default?: () => Promise<void> };
    await expect(fragment ? module.default!() : Promise.resolve()).resolves.toBeUndefined();
  });
});
