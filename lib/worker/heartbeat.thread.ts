// The main thread's side of heartbeat.worker.mjs.
import { Worker } from 'node:worker_threads';
import type { HeartbeatPlan, HeartbeatReport } from '../interfaces/claim.interface.js';

export interface HeartbeatThreadParts {
  plan: HeartbeatPlan;
  keepaliveMs: number;
  onBeat: (report: HeartbeatReport) => void;
  /** The beat failed, or the thread has died (`fatal`) and the owner must beat by other means. */
  onFailure: (error: unknown, fatal: boolean) => void;
}

type Message = HeartbeatReport | { failure: string; code?: string };

/** A main loop that has not moved for so long is taken for lost, and its lease is left to run out. */
const PATIENCE_MS = 60_000;
const STOP_MS = 1_000;
const MAX_HEAP_MB = 64;

/** The clock that all threads of a process share, in ms. */
export const monotonicMs = (): number => Number(process.hrtime.bigint() / 1_000_000n);

export class HeartbeatThread {
  private readonly clock = new BigInt64Array(new SharedArrayBuffer(24));
  private readonly worker: Worker;
  private readonly exited: Promise<void>;
  private ending = false;

  constructor(private readonly parts: HeartbeatThreadParts) {
    const { plan, keepaliveMs } = parts;
    this.markAlive();
    // Not in one expression, which webpack would rewrite: so it takes the file along as it is.
    const script = new URL('./heartbeat.worker.mjs', import.meta.url);
    this.worker = new Worker(script, {
      workerData: { ...plan, keepaliveMs, patienceMs: PATIENCE_MS, shared: this.clock.buffer },
      resourceLimits: { maxOldGenerationSizeMb: MAX_HEAP_MB },
      execArgv: [],
    });
    this.worker.unref();
    this.worker.on('message', (message: Message) => this.onMessage(message));
    this.worker.on('error', (error) => this.fail(error));
    this.exited = new Promise((resolve) => this.worker.once('exit', () => resolve()));
    void this.exited.then(() => this.fail(new Error('The thread of the heartbeat has ended.')));
  }

  /** When the lease was asked for that was granted last, by `monotonicMs`; 0: not granted yet. */
  get renewedAt(): number {
    return Number(Atomics.load(this.clock, 1));
  }

  /** The same by the wall's clock, which goes on while the machine sleeps. */
  get renewedWallAt(): number {
    return Number(Atomics.load(this.clock, 2));
  }

  /** The main loop is alive. */
  markAlive(): void {
    Atomics.store(this.clock, 0, BigInt(monotonicMs()));
  }

  async stop(): Promise<void> {
    this.ending = true;
    this.worker.postMessage('stop');
    const timer = setTimeout(() => void this.worker.terminate(), STOP_MS);
    await this.exited;
    clearTimeout(timer);
  }

  private onMessage(message: Message): void {
    if (this.ending) return;
    if ('failure' in message) {
      const { failure, code } = message;
      this.parts.onFailure(Object.assign(new Error(failure), code && { code }), false);
    } else this.parts.onBeat(message);
  }

  /** Once: an error is followed by the end. */
  private fail(error: unknown): void {
    if (this.ending) return;
    this.ending = true;
    this.parts.onFailure(error, true);
  }
}
