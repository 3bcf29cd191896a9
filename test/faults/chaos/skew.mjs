// Loaded before a worker, and before each of its threads: their clock goes wrong by SKEW_MS, as that of a machine without NTP.
import { syncBuiltinESMExports } from 'node:module';
import threads from 'node:worker_threads';

const skew = Number(process.env.SKEW_MS ?? 0);
const RealDate = Date;
if (skew) {
  globalThis.Date = class extends RealDate {
    constructor(...parts) {
      if (parts.length === 0) super(RealDate.now() + skew);
      else super(...parts);
    }

    static now() {
      return RealDate.now() + skew;
    }
  };
  const { Worker } = threads;
  threads.Worker = class extends Worker {
    constructor(script, options) {
      super(script, { ...options, execArgv: [...(options?.execArgv ?? []), '--import', import.meta.url] });
    }
  };
  syncBuiltinESMExports();
}
