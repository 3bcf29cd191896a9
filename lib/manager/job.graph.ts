// A job among those it depends on and those that depend on it, as people see it.
import type { JobGraph, JobGraphNode } from '../interfaces/job.graph.interface.js';
import type { Database } from '../storage/database.js';
import { toDate } from '../storage/row.types.js';
import { findFamily, type RelativeRow } from '../storage/statements/dependencies.js';

const MAX_NODES = 1_000;

/** Null where there is no such job. */
export async function findGraph(database: Database, id: string): Promise<JobGraph | null> {
  const rows = await database.run(findFamily, [id, MAX_NODES + 1]);
  if (!rows.some((row) => row.id === id)) return null;
  const shown = rows.slice(0, MAX_NODES);
  const ids = new Set(shown.map((row) => row.id));
  const edges = shown.flatMap((row) =>
    row.parents.filter((parent) => ids.has(parent)).map((parentId) => ({ parentId, childId: row.id })),
  );
  return { nodes: shown.map(toNode), edges, truncated: rows.length > MAX_NODES };
}

const toNode = (row: RelativeRow): JobGraphNode => ({
  id: row.id,
  task: row.task,
  status: row.status,
  queue: row.queue,
  groupId: row.group_id ?? row.id,
  attempts: row.attempts,
  maxAttempts: row.max_attempts,
  runAt: toDate(row.run_at),
  createdAt: toDate(row.created_at),
  updatedAt: toDate(row.updated_at),
  onParentFailure: row.on_parent_failure,
});
