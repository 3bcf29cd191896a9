// A PostgreSQL that belongs to one spec, so that it may be crashed and started again.
import { chmodSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type EmbeddedPostgres, startEmbeddedPostgres } from '../../lib/embedded.js';
import { eventually } from './database.js';

const SETTINGS = { fsync: 'off', max_connections: 60 };

export class OwnServer {
  private constructor(
    private readonly folder: string,
    private server: EmbeddedPostgres,
  ) {}

  static async start(): Promise<OwnServer> {
    const folder = mkdtempSync(join(tmpdir(), 'millrace-trouble-'));
    chmodSync(folder, 0o755); // the server has a user of its own
    return new OwnServer(folder, await startEmbeddedPostgres({ dataDir: join(folder, 'data'), settings: SETTINGS }));
  }

  get url(): string {
    return this.server.url;
  }

  /** As `pg_ctl stop -m immediate`: no goodbye to clients, recovery at the next start. */
  async crash(): Promise<void> {
    const { pid } = this.server;
    process.kill(pid, 'SIGQUIT');
    await eventually(() => !isAlive(pid));
    await this.server.stop();
  }

  /** After a crash, on the same port. */
  async startAgain(): Promise<void> {
    const { port } = this.server;
    this.server = await startEmbeddedPostgres({ dataDir: join(this.folder, 'data'), port, settings: SETTINGS });
  }

  async remove(): Promise<void> {
    await this.server.stop();
    rmSync(this.folder, { recursive: true, force: true });
  }
}

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
}
