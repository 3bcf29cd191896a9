import { spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { expect, it } from '@jest/globals';

const root = fileURLToPath(new URL('../..', import.meta.url));

it('an application that was closed leaves no handle open: Jest ends by itself and finds none', async () => {
  const config = (await import(`${root}/jest.config.mjs`)) as { default: Record<string, unknown> };
  const { globalSetup: _setup, globalTeardown: _teardown, ...rest } = config.default;
  const inline = { ...rest, rootDir: root, testMatch: ['<rootDir>/test/citizenship/lifecycle.fixture.ts'] };
  const jest = spawn(
    process.execPath,
    [
      '--experimental-vm-modules',
      'node_modules/jest/bin/jest.js',
      '--detectOpenHandles',
      '--config',
      JSON.stringify(inline),
    ],
    { cwd: root },
  );
  let output = '';
  jest.stdout.on('data', (text) => (output += text));
  jest.stderr.on('data', (text) => (output += text));
  const code = await new Promise((resolve) => jest.on('close', resolve));
  expect({ code, output }).toMatchObject({ code: 0 });
  expect(output).toContain('1 passed');
  expect(output).not.toMatch(/open handle/i);
}, 60_000);
