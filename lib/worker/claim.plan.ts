// What a pool claims for itself, and in which order: its queues one after the other, tasks with a limit of their own apart
// from all others, up to the limit.
import type { ClaimFilter } from '../interfaces/claim.interface.js';
import type { ClaimedJob } from '../interfaces/job.interface.js';
import type { News } from '../storage/job.news.js';
import { ClaimGroup, type TaskRoom } from './claim.group.js';
import type { JobQueueOptions } from './queue.options.js';

export interface PlannedClaim {
  group: ClaimGroup;
  /** Most jobs; null: no limit of its own. */
  limit: number | null;
  /** Of a task that takes many jobs at once. */
  batch?: TaskRoom['batch'];
}

export class ClaimPlan {
  private readonly groups = new Map<string, ClaimGroup>();
  private turn = 0;

  constructor(
    private readonly options: Pick<
      JobQueueOptions,
      'taskRooms' | 'queues' | 'taskIdentifiers' | 'forbiddenFlags' | 'pollIntervalMs' | 'notifier'
    >,
  ) {}

  /** What to claim now, and at most how much of it. Groups of one queue take turns at being first. */
  next(): PlannedClaim[] {
    const rooms = this.rooms.filter(({ task, free }) => free > 0 && (this.tasks?.includes(task) ?? true));
    const first = rooms.length ? this.turn++ % (rooms.length + 1) : 0;
    return (this.options.queues ?? [null]).flatMap((queue) => {
      const groups: PlannedClaim[] = [
        { group: this.groupOf(queue, null), limit: null },
        ...rooms.map(({ task, free, batch }) => ({ group: this.groupOf(queue, task), limit: free, batch })),
      ];
      return [...groups.slice(first), ...groups.slice(0, first)];
    });
  }

  filterOf({ task }: ClaimGroup): ClaimFilter {
    const { forbiddenFlags = null } = this.options;
    const { tasks } = this;
    const limited = new Set(this.rooms.map((room) => room.task));
    const others = limited.size && !tasks ? [...limited] : null;
    const general = limited.size && tasks ? tasks.filter((name) => !limited.has(name)) : tasks;
    return {
      taskIdentifiers: task === null ? general : [task],
      otherTasks: task === null ? others : null,
      forbiddenFlags,
      worstPriority: null,
    };
  }

  /** Whether the news may concern jobs that could be claimed. */
  onNews(news: News): boolean {
    if (news.kind === 'lanes') this.noteRunnable(news.lanes);
    else if (news.kind === 'all') this.noteRunnable(null);
    else if (news.kind === 'pauses') this.noteRunnable(news.lanes ?? null);
    // What was passed may be paused no more.
    if (news.kind === 'pauses' && !news.lanes) for (const { scan } of this.groups.values()) scan.forget();
    if (news.kind === 'jobs' || news.kind === 'all') {
      for (const group of this.groups.values()) group.scan.noteDue(news.kind === 'jobs' ? news.priorities : null);
    }
    return ['jobs', 'lanes', 'all', 'pauses'].includes(news.kind);
  }

  /** Something in lanes that begin like these may run; null: in any. */
  noteRunnable(lanes: string[] | null): void {
    for (const group of this.groups.values()) group.noteRunnable(lanes);
  }

  /** A completion frees the place of a queue's job: the next look, whenever it comes, looks there. */
  noteFreed({ queue, partition }: ClaimedJob): void {
    for (const group of this.groups.values()) group.lanes.noteFreed(queue!, partition);
  }

  /** A place in the job's queue became free, or the job comes back: the next look, whenever it comes, looks there. */
  noteReturned(job: ClaimedJob): void {
    for (const group of this.groups.values()) group.lanes.noteReturned(job);
  }

  /** The poll interval has passed: everything is looked at, told or not. */
  poll(): void {
    for (const group of this.groups.values()) group.scan.expire();
  }

  /** In how many ms a claim of plain jobs may find what lies before its cursor. */
  get sweepIsDueInMs(): number {
    return Math.min(Infinity, ...[...this.groups.values()].map(({ scan }) => scan.sweepIsDueInMs()));
  }

  /** In how many ms a look at lanes may find more than the last one did. */
  get nextLookInMs(): number {
    return Math.min(Infinity, ...[...this.groups.values()].map(({ nextLookInMs }) => nextLookInMs));
  }

  /** Tasks with a limit of their own, those included that this pool has a handler for and does not take. */
  private get rooms(): TaskRoom[] {
    return this.options.taskRooms?.() ?? [];
  }

  /** What the pool takes; null: every task. */
  private get tasks(): string[] | null {
    const { taskIdentifiers = null } = this.options;
    return typeof taskIdentifiers === 'function' ? taskIdentifiers() : taskIdentifiers;
  }

  private groupOf(queue: string | null, task: string | null): ClaimGroup {
    const name = JSON.stringify([queue, task]);
    let group = this.groups.get(name);
    if (group) return group;
    const { pollIntervalMs = 2_000, notifier } = this.options;
    group = new ClaimGroup(queue, task, pollIntervalMs, Boolean(notifier));
    this.groups.set(name, group);
    return group;
  }
}
