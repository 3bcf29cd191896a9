// Worker processes that specs may kill.
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import type { WorkerOptions } from '../../lib/index.js';

const program = fileURLToPath(new URL('../faults/worker.mjs', import.meta.url));

export class WorkerProcess {
  private constructor(
    readonly child: ChildProcess,
    private readonly exited: Promise<unknown>,
  ) {}

  /** Resolves when its pool has started. */
  static async start(url: string, options: WorkerOptions = {}): Promise<WorkerProcess> {
    const env = { ...process.env, DATABASE_URL: url, WORKER_OPTIONS: JSON.stringify(options) };
    const child = fork(program, { env, execArgv: [], stdio: ['ignore', 'ignore', 'inherit', 'ipc'] });
    const exited = once(child, 'exit');
    await Promise.race([once(child, 'message'), exited]);
    return new WorkerProcess(child, exited);
  }

  get alive(): boolean {
    return this.child.exitCode === null && this.child.signalCode === null;
  }

  signal(signal: NodeJS.Signals): void {
    this.child.kill(signal);
  }

  /** Resolves when the process has ended. */
  async end(signal: NodeJS.Signals = 'SIGKILL'): Promise<void> {
    if (this.alive) this.child.kill(signal);
    await this.exited;
  }
}
