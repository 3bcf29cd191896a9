#!/usr/bin/env node
// The command line: migrations and roles, for deployments whose application may not change the schema.
import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { JobsMigrator } from './storage/jobs.migrator.js';
import type { RoleKind } from './storage/role.rights.js';
import { faultOf, show, unknownName } from './validation.js';
import { rules } from './validation.rules.js';

const USAGE = `Usage: millrace <command> [--connection <postgres URL>] [--schema <name>]
                          [--wait <ms>]

  migrate    bring the schema up to date
  destroy-everything --yes
             drop all that millrace has created in the schema: every job, the history, the tables
             (also called rollback)
  version    print the version of the installed schema, 0 where there is none
  grant <enqueue|worker|admin> <role>
             give an existing role exactly the rights of that kind of process; again after each migration
  revoke <role>
             take them away

  --connection <postgres URL>
             default: the environment variable DATABASE_URL
  --schema <name>
             default: jobs
  --wait <ms>
             migrate: keep trying for so long while the database cannot be reached; default 0
  --version  print the version of this package
  --help     print this`;

type Command = (migrator: JobsMigrator, ...operands: string[]) => Promise<string>;

async function destroyEverything(migrator: JobsMigrator): Promise<string> {
  await migrator.rollback();
  return 'Everything is removed.';
}

const COMMANDS: Record<string, Command> = {
  migrate: async (migrator) => {
    await migrator.migrate();
    return `The schema is at version ${await migrator.version()}.`;
  },
  'destroy-everything': destroyEverything,
  rollback: destroyEverything,
  version: async (migrator) => String(await migrator.version()),
  grant: async (migrator, kind, role) => {
    await migrator.grant(kind as RoleKind, role!);
    return `The role "${role}" may do what a process of kind "${kind}" needs.`;
  },
  revoke: async (migrator, role) => {
    await migrator.revoke(role!);
    return `The role "${role}" has no rights in the schema any more.`;
  },
};

/** How many words must follow a command. */
const OPERANDS: Record<string, number> = { grant: 2, revoke: 1 };

/** What they remove is gone for good. */
const DESTRUCTIVE = ['destroy-everything', 'rollback'];

/** What is wrong with the call itself: usage on stderr, exit code 2. */
class UsageError extends Error {}

async function main(args: string[]): Promise<void> {
  const { values, positionals } = parse(args);
  if (values.help || positionals[0] === 'help') return console.log(USAGE);
  if (values.version) return console.log(packageVersion());
  const { command, operands, connection, schema, waitForDatabaseMs } = read(values, positionals);
  const migrator = new JobsMigrator({ connection, schema, waitForDatabaseMs });
  try {
    console.log(await command(migrator, ...operands));
  } finally {
    await migrator.close();
  }
}

interface Call {
  command: Command;
  operands: string[];
  connection: string;
  schema: string;
  waitForDatabaseMs: number;
}

function read(values: Values, positionals: string[]): Call {
  const [name = '', ...operands] = positionals;
  if (!name) throw new UsageError('No command.');
  const known = Object.keys(COMMANDS);
  if (!known.includes(name)) throw new UsageError(unknownName('command', show(name), known));
  const command = COMMANDS[name]!;
  const wanted = OPERANDS[name] ?? 0;
  if (operands.length !== wanted) {
    throw new UsageError(
      `Expected ${wanted} words behind ${name}, got ${operands.length}: "${positionals.join(' ')}".`,
    );
  }
  const schema = values.schema ?? 'jobs';
  if (DESTRUCTIVE.includes(name) && !values.yes) {
    throw new UsageError(`${name} removes every job and the whole history in schema "${schema}". If so, add --yes.`);
  }
  const connection = values.connection ?? process.env.DATABASE_URL;
  if (!connection) throw new UsageError('Expected --connection or DATABASE_URL, got neither.');
  const waitForDatabaseMs = Number(values.wait ?? 0);
  for (const fault of faultOf('--wait', waitForDatabaseMs, rules.timer())) throw new UsageError(fault);
  return { command, operands, connection, schema, waitForDatabaseMs };
}

const OPTIONS = {
  connection: { type: 'string' },
  schema: { type: 'string' },
  wait: { type: 'string' },
  yes: { type: 'boolean' },
  help: { type: 'boolean', short: 'h' },
  version: { type: 'boolean', short: 'v' },
} as const;

type Values = ReturnType<typeof parse>['values'];

function parse(args: string[]) {
  const names = Object.keys(OPTIONS).map((name) => `--${name}`);
  const { tokens } = parseArgs({ args, options: OPTIONS, strict: false, allowPositionals: true, tokens: true });
  for (const token of tokens) {
    if (token.kind !== 'option' || Object.hasOwn(OPTIONS, token.name)) continue;
    throw new UsageError(unknownName('option', token.rawName, names));
  }
  try {
    return parseArgs({ args, options: OPTIONS, allowPositionals: true });
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
}

function packageVersion(): string {
  const manifest = readFileSync(new URL('../package.json', import.meta.url), 'utf8');
  return (JSON.parse(manifest) as { version: string }).version;
}

main(process.argv.slice(2)).catch((error: unknown) => {
  const wrongCall = error instanceof UsageError;
  console.error(wrongCall ? `${error.message}\n\n${USAGE}` : (error as Error).message);
  process.exitCode = wrongCall ? 2 : 1;
});
