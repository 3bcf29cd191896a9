// What pools remember of lanes, for specs of claims without pools.
import type { JobManager } from '../../lib/index.js';
import { LaneMemory } from '../../lib/manager/lane.memory.js';
import type { News } from '../../lib/storage/job.news.js';
import type { JobNotifier } from '../../lib/storage/job.notifier.js';
import { eventually } from '../support/database.js';

/** Memories that hear the news as pools do. */
export class Memories {
  private readonly all = new Map<string, LaneMemory>();
  private readonly heard = new Set<string>();
  private marks = 0;

  constructor(
    private readonly jobs: JobManager,
    private readonly notifier: JobNotifier,
  ) {
    notifier.subscribe((news) => this.hear(news));
  }

  static async create(jobs: JobManager): Promise<Memories> {
    const notifier = jobs.engine.createNotifier(() => undefined);
    await notifier.start();
    return new Memories(jobs, notifier);
  }

  close = (): Promise<void> => this.notifier.stop();

  clear(): void {
    this.all.clear();
  }

  /** As it is when all that was told so far has been heard. */
  async of(incarnation: string, filter: number): Promise<LaneMemory> {
    const mark = `mark ${++this.marks}`;
    await this.jobs.engine.publisher.idle();
    await this.jobs.engine.publisher.publishIn(undefined, [{ kind: 'parents', ids: [mark] }]);
    await eventually(() => this.heard.has(mark));
    const name = `${incarnation} ${filter}`;
    const known = this.all.get(name) ?? new LaneMemory(Infinity);
    this.all.set(name, known);
    return known;
  }

  /** No notification tells of clocks that jump. */
  forget(): void {
    for (const memory of this.all.values()) memory.forget();
  }

  private hear(news: News): void {
    if (news.kind === 'parents') for (const id of news.ids) this.heard.add(id);
    if (news.kind !== 'lanes' && news.kind !== 'all' && news.kind !== 'pauses') return;
    for (const memory of this.all.values()) memory.noteRunnable(news.kind === 'lanes' ? news.lanes : null);
  }
}
