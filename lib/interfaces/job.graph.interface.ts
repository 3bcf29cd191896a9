// Jobs that depend on each other, as `jobGraph` shows them.
import type { JobStatus } from './job.interface.js';

/** A job among its parents and children. */
export interface JobGraphNode {
  id: string;
  task: string;
  status: JobStatus;
  queue: string | null;
  groupId: string;
  attempts: number;
  maxAttempts: number;
  runAt: Date;
  createdAt: Date;
  updatedAt: Date;
  /** What becomes of it when a parent fails for good; null where it has no parents. */
  onParentFailure: 'cancel' | 'run' | 'wait' | null;
}

/** Jobs that depend on each other. */
export interface JobGraph {
  /** The job itself, its ancestors and its descendants: the nearest first. */
  nodes: JobGraphNode[];
  /** Which node waits, or has waited, for which. */
  edges: { parentId: string; childId: string }[];
  /** Whether there are more than 1,000 nodes: the farthest are missing, with their edges. */
  truncated: boolean;
}
