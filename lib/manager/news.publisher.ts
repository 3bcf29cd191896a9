// Tells other processes, after the commit, what may run and what must end. PostgreSQL serialises commits that notify, so many
// changes share one notification: the first goes at once, those that come while it is under way share the next.
import type { QueryExecutor } from '../interfaces/job.interface.js';
import type { Database } from '../storage/database.js';
import { toMessages, type News } from '../storage/job.news.js';
import { publishNews } from '../storage/statements/add-jobs.js';
import { pause } from '../timing.js';

const PAUSE_MS = 5;
const MAX_LANES = 100;

export class NewsPublisher {
  private priorities: Set<number> | 'all' = new Set();
  private lanes: Set<string> | 'all' = new Set();
  private others: News[] = [];
  private inFlight: Promise<void> | null = null;

  constructor(private readonly database: Database) {}

  /**
   * Soon, together with what else there is to tell, and never fails: processes poll as well. Inside a transaction at once: it
   * is heard with the commit.
   */
  async publish(...news: News[]): Promise<void> {
    if (!news.length) return;
    if (this.database.isBound) return this.publishIn(undefined, news);
    for (const one of news) this.gather(one);
    this.inFlight ??= this.run();
  }

  /** In the transaction of `executor`, or in the one that the database is bound to. */
  async publishIn(executor: QueryExecutor | undefined, news: News[]): Promise<void> {
    const messages = messagesOf(news);
    if (messages.length) await this.database.run(publishNews, [this.database.channel, messages], executor);
  }

  /** The same as parameters of a statement that tells it with what it does: a channel, and a JSON array; none: nothing to tell. */
  parametersOf(news: News[]): [channel: string, messages: string] | [] {
    const messages = messagesOf(news);
    return messages.length ? [this.database.channel, JSON.stringify(messages)] : [];
  }

  async idle(): Promise<void> {
    await this.inFlight;
  }

  private gather(news: News): void {
    if (news.kind === 'jobs') this.addPriorities(news.priorities);
    else if (news.kind === 'all') this.lanes = 'all';
    else if (news.kind !== 'lanes') this.others.push(news);
    else for (const lane of news.lanes) this.addLane(lane);
  }

  private addLane(lane: string): void {
    if (this.lanes === 'all') return;
    this.lanes.add(lane);
    if (this.lanes.size > MAX_LANES) this.lanes = 'all';
  }

  private addPriorities(priorities: number[] | null): void {
    if (!priorities) this.priorities = 'all';
    if (this.priorities === 'all') return;
    for (const priority of priorities!) this.priorities.add(priority);
  }

  private take(): News[] {
    const news: News[] = this.others.splice(0);
    if (this.lanes === 'all') news.push({ kind: 'all' });
    else if (this.lanes.size) news.push({ kind: 'lanes', lanes: [...this.lanes] });
    if (this.priorities === 'all') news.push({ kind: 'jobs', priorities: null });
    else if (this.priorities.size) news.push({ kind: 'jobs', priorities: [...this.priorities] });
    this.priorities = new Set();
    this.lanes = new Set();
    return news;
  }

  private async run(): Promise<void> {
    // One turn: what one change has to tell goes together.
    await Promise.resolve();
    for (let news = this.take(); news.length; news = this.take()) {
      const messages = messagesOf(news);
      await this.database.run(publishNews, [this.database.channel, messages]).catch(() => undefined);
      await pause(PAUSE_MS);
    }
    this.inFlight = null;
  }
}

const messagesOf = (news: News[]): string[] => [...new Set(news.flatMap(toMessages))];
