#!/usr/bin/env node
// The command line: migrations, for deployments whose application may not change the schema.
import { parseArgs } from 'node:util';
import { JobsMigrator } from './storage/jobs.migrator.js';

const USAGE = `Usage: millrace <command> [--connection <postgres URL>] [--schema <name>]

  migrate    bring the schema up to date
  rollback   remove everything that millrace has created, its data included
  version    print the version of the installed schema, 0 where there is none

--connection defaults to the environment variable DATABASE_URL, --schema to "jobs".`;

type Command = (migrator: JobsMigrator) => Promise<string>;

const COMMANDS: Record<string, Command> = {
  migrate: async (migrator) => {
    await migrator.migrate();
    return `The schema is at version ${await migrator.version()}.`;
  },
  rollback: async (migrator) => {
    await migrator.rollback();
    return 'Everything is removed.';
  },
  version: async (migrator) => String(await migrator.version()),
};

/** What is wrong with the call itself: usage on stderr, exit code 2. */
class UsageError extends Error {}

async function main(args: string[]): Promise<void> {
  const { command, connection, schema } = read(args);
  const migrator = new JobsMigrator({ connection, schema });
  try {
    console.log(await command(migrator));
  } finally {
    await migrator.close();
  }
}

function read(args: string[]): { command: Command; connection: string; schema: string } {
  const { values, positionals } = parse(args);
  const [name = '', ...rest] = positionals;
  const command = Object.hasOwn(COMMANDS, name) && !rest.length ? COMMANDS[name] : undefined;
  if (!command) throw new UsageError(name ? `Expected one command, got "${positionals.join(' ')}".` : 'No command.');
  const connection = values.connection ?? process.env.DATABASE_URL;
  if (!connection) throw new UsageError('Expected --connection or DATABASE_URL, got neither.');
  return { command, connection, schema: values.schema ?? 'jobs' };
}

function parse(args: string[]) {
  const options = { connection: { type: 'string' }, schema: { type: 'string' } } as const;
  try {
    return parseArgs({ args, options, allowPositionals: true });
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
}

main(process.argv.slice(2)).catch((error: unknown) => {
  const wrongCall = error instanceof UsageError;
  console.error(wrongCall ? `${error.message}\n\n${USAGE}` : (error as Error).message);
  process.exitCode = wrongCall ? 2 : 1;
});
