// Measures the house: node scripts/house.mjs [checkout]. Files, lines, functions, circles with type imports, the path of a
// claimed job, and words that docs/internals.md's readers should not meet.
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, normalize, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';

const root = process.argv[2] ?? fileURLToPath(new URL('..', import.meta.url));
const lib = join(root, 'lib');
const LONG = 40;
const BANNED = /\b(whoever|nobody|somebody|he|his|him|anew|mend(s|ed|ing)?|heed(s|ed)?|in vain)\b/gi;

const listed = (folder, pattern) =>
  readdirSync(folder, { recursive: true, encoding: 'utf8' })
    .filter((file) => pattern.test(file) && !/node_modules|\.d\.mts$/.test(file))
    .map((file) => join(folder, file));

const sources = listed(lib, /\.(ts|mjs)$/).map((file) => {
  const text = readFileSync(file, 'utf8');
  return { file, text, tree: ts.createSourceFile(file, text, ts.ScriptTarget.Latest, true) };
});

function functionsOf({ file, tree }) {
  const found = [];
  const lineOf = (position) => tree.getLineAndCharacterOfPosition(position).line;
  const visit = (node) => {
    if (ts.isFunctionLike(node) && node.body) {
      const name = node.name?.getText() ?? node.parent.name?.getText?.() ?? '(arrow)';
      found.push({ file, name, lines: lineOf(node.body.getEnd()) - lineOf(node.getStart()) + 1 });
    }
    ts.forEachChild(node, visit);
  };
  visit(tree);
  return found;
}

function targetsOf({ file, tree }) {
  const found = new Set();
  const add = (node) => {
    if (node && ts.isStringLiteral(node) && node.text.startsWith('.')) {
      found.add(normalize(join(dirname(file), node.text)).replace(/\.js$/, '.ts'));
    }
  };
  const visit = (node) => {
    if (ts.isImportDeclaration(node) || ts.isExportDeclaration(node)) add(node.moduleSpecifier);
    if (ts.isImportTypeNode(node)) add(node.argument.literal);
    ts.forEachChild(node, visit);
  };
  visit(tree);
  return [...found];
}

/** Groups of files that reach each other, by Tarjan's algorithm. */
function circlesOf(graph) {
  const state = new Map();
  const stack = [];
  const circles = [];
  const walk = (node) => {
    const own = { index: state.size, low: state.size, open: true };
    state.set(node, own);
    stack.push(node);
    for (const next of graph.get(node) ?? []) {
      const seen = state.get(next);
      if (!seen) own.low = Math.min(own.low, walk(next).low);
      else if (seen.open) own.low = Math.min(own.low, seen.index);
    }
    if (own.low !== own.index) return own;
    const group = stack.splice(stack.indexOf(node));
    for (const member of group) state.get(member).open = false;
    if (group.length > 1) circles.push(group);
    return own;
  };
  for (const node of graph.keys()) if (!state.has(node)) walk(node);
  return circles;
}

/** The files that docs/internals.md names functions of, on the way from an add to a settled job. */
const PATH = [
  'manager/job.adder.ts',
  'worker/job.queue.ts',
  'manager/job.claims.ts',
  'worker/job.runner.ts',
  'worker/outcome.batcher.ts',
  'manager/job.settlement.ts',
];

const lengths = sources.flatMap(functionsOf).sort((a, b) => a.lines - b.lines);
const at = (share) => lengths[Math.min(lengths.length - 1, Math.floor(lengths.length * share))]?.lines;
const long = lengths.filter(({ lines }) => lines > LONG);
const circles = circlesOf(new Map(sources.map((source) => [source.file, targetsOf(source)])));
const texts = [
  ...listed(lib, /\.(ts|mjs|sql)$/),
  ...listed(join(root, 'docs'), /\.md$/),
  ...['README.md', 'CHANGELOG.md'].map((name) => join(root, name)),
];
const words = texts.reduce((sum, file) => sum + (readFileSync(file, 'utf8').match(BANNED)?.length ?? 0), 0);
const path = sources.filter(({ file }) => PATH.includes(relative(lib, file)));
const lineCount = (text) => text.split('\n').length - 1;
const sql = listed(lib, /\.sql$/).map((file) => readFileSync(file, 'utf8'));

const facts = {
  'files (ts, mjs)': sources.length,
  'lines (ts, mjs)': sources.reduce((sum, { text }) => sum + lineCount(text), 0),
  'files over 300 lines': sources.filter(({ text }) => lineCount(text) > 300).length,
  'files (sql)': sql.length,
  'lines (sql)': sql.reduce((sum, text) => sum + lineCount(text), 0),
  functions: lengths.length,
  'function lines, median / p90 / max': `${at(0.5)} / ${at(0.9)} / ${at(1)}`,
  [`functions over ${LONG} lines`]: long.length,
  'circles, type imports included': circles.length,
  'files in circles': circles.flat().length,
  'main path: files / lines / functions': `${path.length} / ${path.reduce((sum, { text }) => sum + lineCount(text), 0)} / ${path.flatMap(functionsOf).length}`,
  'banned words in lib and docs': words,
};
for (const [name, value] of Object.entries(facts)) console.log(`${name.padEnd(40)} ${value}`);
for (const { file, name, lines } of long) console.log(`long: ${relative(root, file)} ${name} ${lines}`);
for (const circle of circles) console.log(`circle: ${circle.map((file) => relative(lib, file)).join(', ')}`);
