// The identity of a pool: a label that people know it by, and an incarnation, which is new at each start and each time
// the pool was taken for dead. Claims belong to an incarnation, so an earlier one's are never taken over.
import { randomBytes } from 'node:crypto';
import type { Claimer } from '../interfaces/claim.interface.js';

export class WorkerIdentity {
  private current = newIncarnation();

  constructor(
    readonly label: string,
    /** The module's instance that it is a pool of; `null`: the one without a name. */
    readonly instance: string | null = null,
  ) {}

  get incarnation(): string {
    return this.current;
  }

  get claimer(): Claimer {
    return { holder: this.current, label: this.label, leaseMs: null };
  }

  renew(): void {
    this.current = newIncarnation();
  }
}

const newIncarnation = (): string => randomBytes(12).toString('base64url');

/** A worker id that tells people where it is: host, process, and something that makes it unique. */
export const newWorkerId = (host: string): string =>
  `${host.slice(0, 12)}-${process.pid}-${randomBytes(4).toString('hex')}`;
