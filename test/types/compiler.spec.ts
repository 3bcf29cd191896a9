// What the compiler of a user says of their code, with settings and packages that differ from ours.
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from '@jest/globals';
import ts from 'typescript';

const root = fileURLToPath(new URL('../..', import.meta.url));
const file = `${root}test/types/users-file.ts`;
const config = ts.readConfigFile(`${root}tsconfig.json`, (name) => ts.sys.readFile(name)).config as object;
const base = ts.parseJsonConfigFileContent(config, ts.sys, root).options;

/** Files of the disk as they were read, by the options they are bound to: several programs may share them. */
const sources = new Map<string, ts.SourceFile | undefined>();

/** The files of the disk, these texts, and node_modules without the packages that are missing. */
function hostOf(options: ts.CompilerOptions, texts: Map<string, string>, missing: string[]): ts.CompilerHost {
  const host = ts.createCompilerHost(options);
  const readSource = host.getSourceFile.bind(host);
  host.fileExists = (name) => texts.has(name) || ts.sys.fileExists(name);
  host.readFile = (name) => texts.get(name) ?? ts.sys.readFile(name);
  delete host.directoryExists; // texts lie in none
  host.getSourceFile = (name, languageVersion, ...rest) => {
    const text = texts.get(name);
    if (text !== undefined) return ts.createSourceFile(name, text, languageVersion, true);
    const key = `${name} ${JSON.stringify(options)}`;
    if (!sources.has(key)) sources.set(key, readSource(name, languageVersion, ...rest));
    return sources.get(key);
  };
  host.resolveModuleNameLiterals = (literals, containing, redirected, settings, source) =>
    literals.map((literal) =>
      missing.includes(literal.text)
        ? { resolvedModule: undefined }
        : ts.resolveModuleName(
            literal.text,
            containing,
            settings,
            host,
            undefined,
            redirected,
            ts.getModeForUsageLocation(source, literal, settings),
          ),
    );
  return host;
}

/** The lines of a user's file at which the compiler finds a fault. */
function faultyLines(text: string, changes: ts.CompilerOptions = {}, missing: string[] = []): string[] {
  const options = { ...base, ...changes };
  const program = ts.createProgram([file], options, hostOf(options, new Map([[file, text]]), missing));
  const source = program.getSourceFile(file)!;
  const lines = text.split('\n');
  return program
    .getSemanticDiagnostics(source)
    .map(({ start = 0 }) => lines[source.getLineAndCharacterOfPosition(start).line]!.trim());
}

const DECLARED = `${root}declared/`;
const entries = ['index', 'testing', 'embedded'];

/** The declarations that are published, by name. */
function declarationsOfPackage(): Map<string, string> {
  const declarations = new Map<string, string>();
  const emitted = {
    ...base,
    noEmit: false,
    declaration: true,
    emitDeclarationOnly: true,
    rootDir: `${root}lib`,
    outDir: DECLARED,
  };
  const sources = entries.map((name) => `${root}lib/${name}.ts`);
  ts.createProgram(sources, emitted).emit(undefined, (name, text) => declarations.set(name, text));
  return declarations;
}

/** What `skipLibCheck: false` finds in them. */
function faultsOfDeclarations(declarations: Map<string, string>, missing: string[]): string[] {
  const options = { ...base, skipLibCheck: false };
  const host = hostOf(options, declarations, missing);
  const program = ts.createProgram(
    entries.map((name) => `${DECLARED}${name}.d.ts`),
    options,
    host,
  );
  return [...declarations.keys()].flatMap((name) => {
    const source = program.getSourceFile(name);
    const faults = source ? program.getSemanticDiagnostics(source) : [];
    return faults.map(({ messageText }) => `${name}: ${ts.flattenDiagnosticMessageText(messageText, ' ')}`);
  });
}

/** The names of the public members of a class. */
function publicMembers(text: string, className: string): string[] {
  const source = ts.createSourceFile('declared.ts', text, ts.ScriptTarget.Latest, true);
  const declared = source.statements.filter(ts.isClassDeclaration).find(({ name }) => name?.text === className)!;
  const isPrivate = (member: ts.ClassElement): boolean =>
    ts.canHaveModifiers(member) &&
    (ts.getModifiers(member) ?? []).some(({ kind }) => kind === ts.SyntaxKind.PrivateKeyword);
  return declared.members.filter((member) => !isPrivate(member)).map((member) => member.name?.getText() ?? 'new');
}

describe("a user's compiler", () => {
  it('takes an environment variable for any option, also with exactOptionalPropertyTypes', () => {
    const text = `
      import { createJobManager, createWorkerPool, JobsMigrator, JobsModule, type JobManager, Task } from '../../lib/index.js';
      declare const jobs: JobManager;
      declare const text: string | undefined;
      declare const count: number | undefined;
      declare const yes: boolean | undefined;
      declare const date: Date | undefined;
      JobsModule.forRoot({ connection: process.env.X, schema: text, retry: { maxAttempts: count }, worker: { listen: yes } });
      JobsModule.forRootAsync({ name: text, useFactory: () => ({ connection: process.env.X }) });
      void createJobManager({ connection: process.env.X, queues: { a: { concurrency: count } } });
      new JobsMigrator({ connection: process.env.X, waitForDatabaseMs: count });
      createWorkerPool({ jobs, tasks: {}, workerId: text, options: { concurrency: count } });
      void jobs.addJob('x', {}, { queue: text, priority: count, runAt: date, notify: yes, timeoutMs: count });
      void jobs.addJobs([{ task: 'x', payload: 1, queue: text }], { notify: yes });
      void jobs.getJobs('worker-id-1', { batchSize: count });
      void jobs.workOnce({ queues: undefined });
      void jobs.rescheduleJobs([], { runAt: date });
      void jobs.replayFailedJobs({ from: date });
      void jobs.resetLockedJobs({ lockTimeoutMs: count });
      void jobs.gcTaskIdentifiers({ keepSinceMs: count });
      void jobs.listJobs({ task: text }, { limit: count, cursor: text });
      void jobs.listHistory({ workerId: text });
      void jobs.waitForJob('id', { timeoutMs: count, signal: undefined });
      void jobs.scheduleCron({ id: 'c', task: 'x', schedule: '* * * * *', timeZone: text, options: { queue: text } });
      Task('x', { queue: text, concurrency: count, cron: text });
    `;
    expect(faultyLines(text, { exactOptionalPropertyTypes: true })).toEqual([]);
  });

  it('checks a connection without the types of pg, and takes those of pg where they are there', () => {
    const text = `
      import { createJobManager, JobsMigrator } from '../../lib/index.js';
      void createJobManager({ connection: { host: 'h', max: 5, ssl: { rejectUnauthorized: false } } });
      void createJobManager({ connection: 5 });
      void createJobManager({ connection: { hots: 'h' } });
      void createJobManager({ listenConnection: true });
      new JobsMigrator({ connection: 5 });
    `;
    const wrong = [
      'void createJobManager({ connection: 5 });',
      "void createJobManager({ connection: { hots: 'h' } });",
      'void createJobManager({ listenConnection: true });',
      'new JobsMigrator({ connection: 5 });',
    ];
    expect(faultyLines(text, {}, ['pg'])).toEqual(wrong);
    expect(faultyLines(text)).toEqual(wrong);
    const typed = `
      import type pg from 'pg';
      import { createJobManager } from '../../lib/index.js';
      declare const config: pg.PoolConfig;
      void createJobManager({ connection: config, listenConnection: config });
    `;
    expect(faultyLines(typed)).toEqual([]);
    expect(faultyLines(typed, { exactOptionalPropertyTypes: true })).toEqual([]);
  });

  it('sees the calls of a JobManager, and none of the parts that pools work with', () => {
    const classes = { manager: 'JobManager', operations: 'JobOperations', reports: 'JobReports' };
    const members = Object.entries(classes).flatMap(([file, name]) =>
      publicMembers(declarationsOfPackage().get(`${DECLARED}manager/job.${file}.d.ts`)!, name),
    );
    expect(members).toEqual(expect.arrayContaining(['addJob', 'getJobs', 'cancelJobs', 'explain', 'close']));
    const parts = ['engine', 'claims', 'settlement', 'attempts', 'crontabs', 'retention', 'within', 'runWith'];
    expect(members.filter((name) => parts.includes(name))).toEqual([]);
  });

  it('compiles the declarations of the package without the packages that are optional', () => {
    const { peerDependenciesMeta } = JSON.parse(ts.sys.readFile(`${root}package.json`)!) as {
      peerDependenciesMeta: Record<string, unknown>;
    };
    expect(faultsOfDeclarations(declarationsOfPackage(), Object.keys(peerDependenciesMeta))).toEqual([]);
  });
});
