// Settles of what open transactions hold: each by itself, all in turn, on one connection, however many there are.
import type { Claimer, SettleRequest, SettleResult } from '../interfaces/claim.interface.js';
import { pause } from '../timing.js';

interface LateSettle {
  claimer: Claimer;
  request: SettleRequest;
  resolve: (result: SettleResult) => void;
  reject: (reason: unknown) => void;
}

const FIRST_PAUSE_MS = 5;
const MAX_PAUSE_MS = 1_000;

export class LateSettles {
  private waiting: LateSettle[] = [];
  private trying: Promise<void> | null = null;

  /** `settle` resolves with null where the job is still held, and rejects where it can never be settled. */
  constructor(private readonly settle: (claimer: Claimer, request: SettleRequest) => Promise<SettleResult | null>) {}

  /** Resolves when the job was let go and is settled. */
  add(claimer: Claimer, request: SettleRequest): Promise<SettleResult> {
    return new Promise((resolve, reject) => {
      this.waiting.push({ claimer, request, resolve, reject });
      this.trying ??= this.tryAll().finally(() => (this.trying = null));
    });
  }

  private async tryAll(): Promise<void> {
    for (let pauseMs = FIRST_PAUSE_MS; this.waiting.length; pauseMs = Math.min(MAX_PAUSE_MS, pauseMs * 2)) {
      await pause(pauseMs);
      for (const entry of this.waiting.splice(0)) {
        if (await this.tryOne(entry)) pauseMs = FIRST_PAUSE_MS;
        else this.waiting.push(entry);
      }
    }
  }

  /** Whether it is settled, or known not to be. */
  private async tryOne({ claimer, request, resolve, reject }: LateSettle): Promise<boolean> {
    try {
      const result = await this.settle(claimer, request);
      if (!result) return false;
      resolve(result);
    } catch (error) {
      reject(error);
    }
    return true;
  }
}
