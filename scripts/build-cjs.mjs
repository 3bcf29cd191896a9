// dist/cjs: the package as CommonJS, for those who cannot load ES modules: Jest in a CommonJS project, and bundlers that
// meet a require(). Node itself takes the ES modules for import and require alike (the condition "module-sync"), so that
// one process has one copy. Usage: node scripts/build-cjs.mjs, after `nest build lib`.
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { transformSync } from '@swc/core';

const dist = fileURLToPath(new URL('../dist', import.meta.url));
const target = join(dist, 'cjs');
const files = readdirSync(dist, { recursive: true, encoding: 'utf8' }).filter(
  (file) => file.endsWith('.js') && !relative(dist, join(dist, file)).startsWith('cjs') && file !== 'cli.js',
);

/** Migrations and threads are there once: the CommonJS file looks for them beside its twin. */
function withTwinsUrl(file, code) {
  const up = relative(dirname(join(target, file)), join(dist, file)).replaceAll('\\', '/');
  const url = `require('node:url').pathToFileURL(require('node:path').join(__dirname, '${up}')).href`;
  return code.replaceAll('import.meta.url', `(${url})`);
}

for (const file of files) {
  const { code } = transformSync(withTwinsUrl(file, readFileSync(join(dist, file), 'utf8')), {
    swcrc: false,
    inputSourceMap: false,
    jsc: { target: 'es2022', parser: { syntax: 'ecmascript' }, keepClassNames: true },
    module: { type: 'commonjs' },
  });
  mkdirSync(dirname(join(target, file)), { recursive: true });
  writeFileSync(join(target, file), code.replace(/\n?\/\/# sourceMappingURL=.*\n?$/, '\n'));
}
writeFileSync(join(target, 'package.json'), '{ "type": "commonjs" }\n');
console.log(`${files.length} files in dist/cjs`);
