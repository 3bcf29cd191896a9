import { readFileSync } from 'node:fs';
import { expect, it } from '@jest/globals';

const page = (name: string): string => readFileSync(new URL(`../../${name}`, import.meta.url), 'utf8');

/** The packages that a page says to install, by the release of NestJS. */
const installLines = (name: string): [nest: string, packages: string[]][] =>
  [...page(name).matchAll(/^# NestJS (\d+)\nnpm install (millrace .*)$/gm)].map(([, nest, packages]) => [
    nest!,
    packages!.split(' '),
  ]);

it.each(installLines('README.md'))(
  "README's install line for NestJS %s has what its first examples need, beside a Nest project",
  (_nest, packages) => {
    const installed = packages.map((name) => name.replace(/(?!^)@.*$/, ''));
    const readme = page('README.md');
    const examples = readme.slice(0, readme.indexOf('## Try it'));
    const imported = [...examples.matchAll(/from '([^.'][^']*)'/g)].map(([, name]) => name!);
    const ofNest = ['@nestjs/common', '@nestjs/core'];
    expect(imported).toContain('class-validator');
    expect(imported.filter((name) => !installed.includes(name) && !ofNest.includes(name))).toEqual([]);
    // Constraints of class-validator are checked on instances that class-transformer makes.
    expect(installed).toEqual(expect.arrayContaining(['pg', '@nestjs/schedule', 'class-transformer']));
  },
);

it.each(['README.md', 'docs/getting-started.md'])(
  '%s installs the @nestjs/schedule that Jest can load with each release of NestJS',
  (name) => {
    const schedules = installLines(name).map(([nest, packages]) => [
      nest,
      packages.find((installed) => installed.startsWith('@nestjs/schedule')),
    ]);
    expect(schedules).toEqual([
      ['12', '@nestjs/schedule@12'],
      ['11', '@nestjs/schedule@6'],
    ]);
    expect(page(name).match(/npm install millrace/g)).toHaveLength(2);
  },
);
