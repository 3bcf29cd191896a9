// Takes out what guards against a fault, one guard after the other, and demands that a check finds it: `npm run mutants`.
//
//   npm run mutants                        all of them: about an hour on two cores
//   npm run mutants -- buffer 'dead pool'  those whose names contain one of these
//   npm run mutants -- --list              their names
//
// Works on a copy of the tree. A mutant is found where a check fails by what it asserts, or by its time limit: one that
// does not compile, or that PostgreSQL refuses, shows nothing. Each check that found one must pass on the tree as it is.
// Exit code 1 where a mutant was not found, its text is not in the tree exactly once, or a check fails without it.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { cpSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import process from 'node:process';
import { fileURLToPath } from 'node:url';
import { parseArgs, stripVTControlCharacters } from 'node:util';
import { startPostgres } from '../support/postgres.mjs';
import { MUTANTS } from './mutants.mjs';

const root = fileURLToPath(new URL('../..', import.meta.url));
const LEFT_OUT = new Set(['node_modules', 'dist', 'dist-sample', 'coverage', '.cache', '.git']);
/** What no check asserts: the tree is broken, not wrong. */
const BROKEN =
  /SyntaxError|syntax error|ReferenceError|ECONNRESET|ECONNREFUSED|Cannot find module|is not a function|(column|function|relation|operator) .* does not exist|ambiguous|must not return NULL/;

const { values: options, positionals: wanted } = parseArgs({
  allowPositionals: true,
  options: { list: { type: 'boolean' } },
});

const chosen = MUTANTS.filter(({ name }) => !wanted.length || wanted.some((part) => name.includes(part)));
if (options.list || !chosen.length) {
  for (const { name } of MUTANTS) console.log(name);
  process.exit(chosen.length ? 0 : 1);
}

const copy = mkdtempSync(join(tmpdir(), 'millrace-mutants-'));
cpSync(root, copy, { recursive: true, filter: (path) => !LEFT_OUT.has(basename(path)) });
symlinkSync(join(root, 'node_modules'), join(copy, 'node_modules'));
const postgres = await startPostgres();
let running = null;
process.once('SIGINT', () => running?.kill());

/** Puts the edits of a mutant into the copy. Returns how to take them back. */
function apply({ edits }) {
  const originals = new Map();
  for (const { file, find, put } of edits) {
    const path = join(copy, file);
    const text = readFileSync(path, 'utf8');
    if (!originals.has(path)) originals.set(path, text);
    const times = text.split(find).length - 1;
    if (times !== 1) throw new Error(`its text is in ${file} ${times} times`);
    writeFileSync(
      path,
      text.replace(find, () => put),
    );
  }
  return () => originals.forEach((text, path) => writeFileSync(path, text));
}

/** Runs one check. Returns what it had to say: each failed test, and why. */
async function run({ spec, only }, says) {
  const report = join(copy, 'report.json');
  rmSync(report, { force: true });
  const flags = ['--experimental-vm-modules', '--disable-warning=ExperimentalWarning'];
  const jest = ['node_modules/jest/bin/jest.js', '-i', '--silent', '--json', `--outputFile=${report}`, spec];
  running = spawn(process.execPath, [...flags, ...jest, ...(only ? ['-t', only] : [])], {
    cwd: copy,
    env: { ...process.env, MILLRACE_TEST_PG: postgres.url },
    stdio: 'ignore',
  });
  await once(running, 'exit');
  const { testResults, numPassedTests, numFailedTests } = JSON.parse(readFileSync(report, 'utf8'));
  if (!numPassedTests && !numFailedTests) return { broken: testResults[0]?.message || 'no test has this name' };
  const failed = testResults.flatMap((file) => file.assertionResults).filter(({ status }) => status === 'failed');
  const faults = failed.map(({ fullName, failureMessages }) => ({ fullName, why: failureMessages.join('\n') }));
  return {
    faults: faults.filter(({ why }) => !BROKEN.test(why) || says?.test(why)),
    broken: faults.find(({ why }) => BROKEN.test(why))?.why,
  };
}

const labelOf = ({ spec, only }) => `${spec.replace('test/', '')}${only ? ` (${only})` : ''}`;
const firstLines = (text) => stripVTControlCharacters(text).split('\n').slice(0, 3).join(' ').slice(0, 200);

/** Tries the checks of a mutant in their order, until one finds it. */
async function judge(mutant) {
  const startedAt = performance.now();
  const seconds = () => Math.round((performance.now() - startedAt) / 1_000);
  let restore;
  try {
    restore = apply(mutant);
  } catch (error) {
    return { mutant, problem: error.message, seconds: 0 };
  }
  const silent = [];
  try {
    for (const check of mutant.checks) {
      const { faults = [], broken } = await run(check, mutant.says);
      if (faults.length) return { mutant, check, fault: faults[0], seconds: seconds() };
      silent.push(labelOf(check) + (broken ? `: ${firstLines(broken)}` : ''));
    }
    return { mutant, problem: `not found by ${silent.join(', ')}`, seconds: seconds() };
  } finally {
    restore();
  }
}

const results = [];
for (const mutant of chosen) {
  const result = await judge(mutant);
  results.push(result);
  const told = result.problem
    ? `NOT FOUND: ${result.problem}`
    : `${labelOf(result.check)}: ${firstLines(result.fault.why)}`;
  console.log(`${String(result.seconds).padStart(4)} s  ${mutant.name}\n        ${told}`);
}

// A check that fails anyway has found nothing.
const finders = new Map(results.filter(({ check }) => check).map(({ check }) => [labelOf(check), check]));
const unsound = new Map();
for (const [label, check] of finders) {
  const { faults = [], broken } = await run(check);
  if (faults.length || broken) unsound.set(label, firstLines(faults[0]?.why ?? broken));
}
await postgres.stop();
rmSync(copy, { recursive: true, force: true });

console.log('\n| without | is found by | seconds |\n| --- | --- | --- |');
for (const { mutant, check, problem, seconds } of results) {
  console.log(`| ${mutant.name} | ${problem ? `**${problem}**` : labelOf(check)} | ${seconds} |`);
}
for (const [label, why] of unsound) console.log(`\nfails on the tree as it is: ${label}: ${why}`);
const missed = results.filter(({ problem }) => problem).length;
console.log(`\n${results.length - missed} of ${results.length} found, ${missed} not`);
process.exit(missed || unsound.size ? 1 : 0);
