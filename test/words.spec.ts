// The English of docs, comments, messages and test names: words that make a sentence read as translated are not used. The
// subject of a sentence is the component, in plain words.
import { readdirSync, readFileSync } from 'node:fs';
import { join, sep } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from '@jest/globals';

const root = fileURLToPath(new URL('..', import.meta.url));

const WORDS =
  /\b(?:whoever|whom|nobody|somebody|anybody|he|his|him|himself|anew|mend|mends|mended|mending|heed|heeds|heeded|in vain|without more ado)\b/gi;

/** "Who" is a word for people: these stand for jobs, processes, pools and statements. */
const WHO =
  /\bwho (?:waits?|waited|holds?|held|owns?|owned|claims?|claimed|settles?|sees|tries|answers|does not answer|locks?|runs the jobs|may go on)\b|\b(?:jobs?|pools?|workers?|process(?:es)?|handlers?|claims?|callers?|statements?|servers?|sessions?|transactions?|those|supervisor),? who\b|(?:\/\*\*|\/\/|--|[.;:]) who \w+/gi;

/** The user of Unix, and names within quotes. */
const NAMES = /(['"`])nobody\1/g;

const COMMENTS = /\/\*[\s\S]*?\*\/|(?<![:'"`\w])\/\/.*$/gm;
/** A text that a function follows: it('…', () => …), in each of its forms. */
const TITLES = /(?<=[(,]\s*)(['"`])((?:(?!\1)[^\\\n]|\\.)+)\1(?=,\s*(?:async )?(?:\(|function|\w+ =>))/g;
const HEAD = /^(?:\/\/.*\n)+/;

const IGNORED = /(^|\/)(node_modules|dist|\.cache)(\/|$)/;

/** Files below a folder, or the one file, by paths with slashes. */
function filesOf(place: string, suffix: RegExp): string[] {
  if (suffix.test(place)) return [place];
  return readdirSync(join(root, place), { recursive: true, encoding: 'utf8' })
    .map((name) => `${place}/${name.split(sep).join('/')}`)
    .filter((name) => suffix.test(name) && !IGNORED.test(name));
}

type Part = (text: string, file: string) => string;

/** Everything that does not match becomes blank, so that lines keep their numbers. */
function only(text: string, parts: RegExp): string {
  let kept = '';
  let end = 0;
  for (const { 0: part, index } of text.matchAll(parts)) {
    kept += text.slice(end, index).replaceAll(/[^\n]/g, ' ') + part;
    end = index + part.length;
  }
  return kept;
}

const all: Part = (text) => text;
const prose: Part = (text, file) => (file.endsWith('benchmarks.md') ? text.replaceAll(/^\|.*$/gm, '') : text);
const comments: Part = (text, file) => (/\.(md|sql)$/.test(file) ? text : only(text, COMMENTS));
const titles: Part = (text) => (HEAD.exec(text)?.[0] ?? '') + only(text.replace(HEAD, ''), TITLES);

function faultsIn(file: string, part: Part): string[] {
  const lines = part(readFileSync(join(root, file), 'utf8'), file)
    .replaceAll(NAMES, '')
    .split('\n');
  return lines.flatMap((line, index) =>
    [...line.matchAll(WORDS), ...line.matchAll(WHO)].map(([word]) => `${file}:${index + 1}: ${word.trim()}`),
  );
}

describe('plain English is spoken', () => {
  it.each<[string, string[], RegExp, Part]>([
    ['in the library', ['lib'], /\.(ts|sql|mjs)$/, all],
    ['in the documentation', ['docs', 'README.md', 'CHANGELOG.md', 'SECURITY.md'], /\.md$/, prose],
    ['in the comments of samples and benchmarks', ['sample', 'bench'], /\.(ts|mjs|md|sql)$/, comments],
    ['in the names of tests', ['test'], /\.spec\.ts$/, titles],
  ])('%s', (_, places, suffix, part) => {
    const files = places.flatMap((place) => filesOf(place, suffix));
    expect(files.length).toBeGreaterThan(0);
    expect(files.filter((file) => file !== 'test/words.spec.ts').flatMap((file) => faultsIn(file, part))).toEqual([]);
  });
});
