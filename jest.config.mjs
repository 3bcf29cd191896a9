// Native ESM: needs `node --experimental-vm-modules` (see the "test" script).
const swc = {
  jsc: {
    target: 'es2022',
    parser: { syntax: 'typescript', decorators: true },
    transform: { legacyDecorator: true, decoratorMetadata: true },
    keepClassNames: true,
  },
  module: { type: 'es6' },
  sourceMaps: 'inline',
};

// scripts/matrix.mjs: another NestJS than the installed one.
const nest = process.env.MILLRACE_TEST_NEST;

export default {
  rootDir: '.',
  testMatch: ['<rootDir>/test/**/*.spec.ts'],
  testEnvironment: 'node',
  testTimeout: 30_000,
  extensionsToTreatAsEsm: ['.ts'],
  resolver: '<rootDir>/jest.resolver.cjs', // './x.js' in our own files -> './x.ts'
  moduleNameMapper: {
    ...(nest && {
      '^@nestjs/(common|core|platform-express|schedule|testing|typeorm)(.*)$': `${nest}/@nestjs/$1$2`,
      // NestJS 11 is CommonJS and so is its TypeORM: there must be one.
      '^typeorm$': '<rootDir>/node_modules/typeorm/index.js',
    }),
    '^millrace$': '<rootDir>/lib/index.ts',
    '^millrace/(embedded|testing)$': '<rootDir>/lib/$1.ts',
  },
  modulePathIgnorePatterns: ['<rootDir>/dist', '<rootDir>/dist-sample', '<rootDir>/.cache/pg'],
  transform: { '^.+\\.ts$': ['@swc/jest', swc] },
  globalSetup: '<rootDir>/test/support/global-setup.mjs',
  globalTeardown: '<rootDir>/test/support/global-teardown.mjs',
  testSequencer: '<rootDir>/test/support/sequencer.mjs',
  maxWorkers: 2,
  workerIdleMemoryLimit: '600MB', // a worker keeps ~25 MB for every ESM test file that it has run
  collectCoverageFrom: ['lib/**/*.ts'],
  coverageProvider: 'v8',
};
