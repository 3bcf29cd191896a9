// The worker processes of a chaos run: started, killed, frozen, replaced.
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { GRACE_MS } from './faults.mjs';

const program = fileURLToPath(new URL('worker.mjs', import.meta.url));
const HOUR_MS = 3_600_000;
/** What a worker's handler `exits` leaves behind. */
const EXITS_CODE = 7;

export class Fleet {
  /** Of processes that ended unasked. */
  unexpected = [];
  /** Claims whose outcome came too late, as told by the workers. */
  lostClaims = 0;
  started = 0;
  #workers = [];
  #url;
  #size;
  #options;
  #over = false;

  constructor(url, size, options) {
    this.#url = url;
    this.#size = size;
    this.#options = options;
  }

  async start() {
    for (let n = 0; n < this.#size; n++) this.#launch();
    await Promise.all(this.#workers.map(({ ready }) => ready));
  }

  /** Those that are up and not frozen. */
  get active() {
    return this.#workers.filter(({ isReady, frozen, leaving }) => isReady && !frozen && !leaving);
  }

  /** Ends a worker without warning, and starts another in its place. */
  kill(worker) {
    worker.leaving = true;
    worker.child.kill('SIGKILL');
  }

  /** Asks a worker to end; resolves with the time it took, or undefined if it was killed after `patienceMs`. */
  async terminate(worker, patienceMs) {
    worker.leaving = true;
    worker.stopping = 'nothing yet';
    const startedAt = performance.now();
    let killed = false;
    const impatience = setTimeout(() => (killed = worker.child.kill('SIGKILL')), patienceMs);
    worker.child.kill('SIGTERM');
    await worker.ended;
    clearTimeout(impatience);
    return killed ? undefined : performance.now() - startedAt;
  }

  freeze(worker) {
    worker.frozen = true;
    worker.child.kill('SIGSTOP');
  }

  resume(worker) {
    worker.child.kill('SIGCONT');
    worker.frozen = false;
  }

  async stop(patienceMs) {
    this.#over = true;
    return Promise.all(this.#workers.map((worker) => this.terminate(worker, patienceMs)));
  }

  #launch() {
    const n = this.started++;
    const id = `chaos-worker-${n}`;
    const skewMs = [0, HOUR_MS, -HOUR_MS][n % 3];
    const env = {
      ...process.env,
      DATABASE_URL: this.#url,
      WORKER_ID: id,
      WORKER_OPTIONS: JSON.stringify(this.#options),
      SKEW_MS: String(skewMs),
      GRACE_MS: String(GRACE_MS),
    };
    const child = fork(program, { env, execArgv: [], stdio: ['ignore', 'ignore', 'pipe', 'ipc'] });
    const worker = { id, child, isReady: false, frozen: false, leaving: false, stopping: 'nothing yet', said: '' };
    child.stderr.on('data', (text) => (worker.said = (worker.said + text).slice(-4_000)));
    worker.ended = once(child, 'close').then(([code, signal]) => this.#ended(worker, code, signal));
    worker.ready = new Promise((resolve) => {
      child.on('message', ({ ready, lost, stopping }) => {
        if (stopping) worker.stopping = stopping;
        if (lost) this.lostClaims += lost;
        if (!ready) return;
        worker.isReady = true;
        resolve();
      });
      void worker.ended.then(resolve);
    });
    this.#workers.push(worker);
  }

  #ended(worker, code, signal) {
    this.#workers.splice(this.#workers.indexOf(worker), 1);
    const asked = worker.leaving && (signal === 'SIGKILL' || code === 0);
    // A worker that starts while the database is away says so and ends, as a container would: it is started again.
    const neverUp = !worker.isReady && code === 1;
    if (!asked && !neverUp && code !== EXITS_CODE) {
      this.unexpected.push(`${worker.id} ended by ${signal ?? `code ${code}`}: ${worker.said.trim()}`);
    }
    if (!this.#over) setTimeout(() => this.#over || this.#launch(), neverUp ? 500 : 0);
  }
}
