// Runs a program with DATABASE_URL, on an embedded PostgreSQL that ends with it.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { startEmbeddedPostgres } from 'millrace/embedded';

const postgres = await startEmbeddedPostgres();
const env = { ...process.env, DATABASE_URL: postgres.url };
const child = spawn(process.execPath, process.argv.slice(2), { stdio: 'inherit', env, timeout: 60_000 });
const [code] = await once(child, 'exit');
await postgres.stop();
process.exitCode = code ?? 1;
