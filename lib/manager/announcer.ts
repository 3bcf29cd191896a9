// Tells idle pools, after the commit, that there is work. PostgreSQL serialises commits that notify, so many adds
// share one notification: the first goes at once, those that come while it is under way share the next.
import type { Database } from '../storage/database.js';
import { announceJobs } from '../storage/statements/add-jobs.js';

const PAUSE_MS = 5;

export class Announcer {
  private inFlight: Promise<void> | null = null;
  private again = false;

  constructor(private readonly database: Database) {}

  announce(): void {
    this.again = true;
    this.inFlight ??= this.run();
  }

  async idle(): Promise<void> {
    await this.inFlight;
  }

  private async run(): Promise<void> {
    while (this.again) {
      this.again = false;
      // Pools poll as well: a lost notification costs time, never a job.
      await this.database.run(announceJobs, [this.database.channel]).catch(() => undefined);
      if (this.again) await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
    }
    this.inFlight = null;
  }
}
