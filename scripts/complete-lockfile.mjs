// Adds to package-lock.json the optional packages of other platforms that npm left out, because a registry mirror did
// not have them. Without their entries `npm ci` refuses the lock file everywhere. Run it after every `npm install`.
import { readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const file = fileURLToPath(new URL('../package-lock.json', import.meta.url));
const lock = JSON.parse(readFileSync(file, 'utf8'));
const systems = ['darwin', 'win32', 'linux', 'freebsd', 'android', 'openharmony'];
const processors = ['arm64', 'x64', 'ia32', 'arm', 'ppc64', 's390x', 'riscv64', 'loong64'];

/** Whether the package `from` finds `name` in its own or an outer node_modules. */
function resolves(from, name) {
  for (let at = from; ; at = at.slice(0, Math.max(0, at.lastIndexOf('/node_modules/')))) {
    if (lock.packages[`${at ? `${at}/` : ''}node_modules/${name}`]) return true;
    if (!at) return false;
  }
}

for (const [path, { optionalDependencies = {}, license }] of Object.entries(lock.packages)) {
  for (const [name, version] of Object.entries(optionalDependencies)) {
    if (resolves(path, name)) continue;
    const os = systems.find((system) => name.includes(system));
    const cpu = processors.find((processor) => name.includes(processor));
    const entry = { version: version.replace(/^[\^~]/, ''), dev: true, license, optional: true };
    lock.packages[`node_modules/${name}`] = { ...entry, ...(cpu && { cpu: [cpu] }), ...(os && { os: [os] }) };
    console.log(`added ${name}@${entry.version}`);
  }
}

const { '': root, ...packages } = lock.packages;
const sorted = Object.entries(packages).sort(([a], [b]) => (a < b ? -1 : 1));
lock.packages = { '': root, ...Object.fromEntries(sorted) };
writeFileSync(file, `${JSON.stringify(lock, null, 2)}\n`);
