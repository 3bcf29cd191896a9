import { readFileSync } from 'node:fs';
import { expect, it } from '@jest/globals';

it("README's install line has what its first examples need, beside a Nest project", () => {
  const readme = readFileSync(new URL('../../README.md', import.meta.url), 'utf8');
  const installed = /npm install (millrace .*)/.exec(readme)![1]!.split(' ');
  const examples = readme.slice(0, readme.indexOf('## Try it'));
  const imported = [...examples.matchAll(/from '([^.'][^']*)'/g)].map(([, name]) => name!);
  const ofNest = ['@nestjs/common', '@nestjs/core'];
  expect(imported).toContain('class-validator');
  expect(imported.filter((name) => !installed.includes(name) && !ofNest.includes(name))).toEqual([]);
  // Constraints of class-validator are checked on instances that class-transformer makes.
  expect(installed).toEqual(expect.arrayContaining(['pg', '@nestjs/schedule', 'class-transformer']));
});
