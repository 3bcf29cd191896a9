// Circles of jobs that wait for each other, among pairs of a child and a parent. Each job is visited once, however many
// ways lead to it.
import type { PairRow } from '../storage/statements/dependencies.js';

/** By child: its parents. */
type Parents = Map<string, string[]>;

/** The shortest way from one of these jobs through what it waits for back to itself; null: there is none. */
export function circleThrough(ids: string[], pairs: PairRow[]): string[] | null {
  const parents = parentsIn(pairs);
  for (const id of ids) {
    const path = parents.has(id) ? wayBack(id, parents) : null;
    if (path) return path;
  }
  return null;
}

/** Circles that have no job in common, each from its youngest job back to itself. */
export function circlesIn(pairs: PairRow[]): string[][] {
  const circles: string[][] = [];
  for (let open = pairs; ;) {
    const parents = withoutEnds(parentsIn(open));
    const circle = anyCircle(parents);
    if (!circle) return circles;
    circles.push(fromYoungest(circle));
    const found = new Set(circle);
    open = open.filter(({ child_id: child, parent_id: parent }) => !found.has(child) && !found.has(parent));
  }
}

function parentsIn(pairs: PairRow[]): Parents {
  const parents: Parents = new Map();
  for (const { child_id: child, parent_id: parent } of pairs) addTo(parents, child, parent);
  return parents;
}

function addTo(lists: Map<string, string[]>, key: string, value: string): void {
  const known = lists.get(key);
  if (known) known.push(value);
  else lists.set(key, [value]);
}

function wayBack(start: string, parents: Parents): string[] | null {
  const childOf = new Map<string, string>();
  const open = [start];
  for (const job of open) {
    for (const parent of parents.get(job) ?? []) {
      if (childOf.has(parent)) continue;
      childOf.set(parent, job);
      if (parent === start) return pathTo(start, childOf);
      open.push(parent);
    }
  }
  return null;
}

function pathTo(start: string, childOf: Map<string, string>): string[] {
  const path = [start];
  for (let job = childOf.get(start)!; job !== start; job = childOf.get(job)!) path.unshift(job);
  return [start, ...path];
}

/** Only jobs all of whose ways go on: one that waits for nothing is taken away, and then those that waited for it alone. */
function withoutEnds(parents: Parents): Parents {
  const children = new Map<string, string[]>();
  const left = new Map<string, number>();
  for (const [child, of] of parents) {
    left.set(child, of.length);
    for (const parent of of) addTo(children, parent, child);
  }
  const ended = [...children.keys()].filter((job) => !left.has(job));
  for (const job of ended) {
    for (const child of children.get(job) ?? []) {
      left.set(child, left.get(child)! - 1);
      if (left.get(child) === 0) ended.push(child);
    }
  }
  const gone = new Set(ended);
  const kept: Parents = new Map();
  for (const [child, of] of parents) {
    if (!gone.has(child))
      kept.set(
        child,
        of.filter((parent) => !gone.has(parent)),
      );
  }
  return kept;
}

/** Every job here has a parent here: a walk from any of them comes back to where it has been. */
function anyCircle(parents: Parents): string[] | null {
  const seen = new Map<string, number>();
  const walked: string[] = [];
  for (let job = parents.keys().next().value; job !== undefined; job = parents.get(job)?.[0]) {
    const at = seen.get(job);
    if (at !== undefined) return walked.slice(at);
    seen.set(job, walked.length);
    walked.push(job);
  }
  return null;
}

/** Ids carry their time. */
function fromYoungest(circle: string[]): string[] {
  const youngest = circle.reduce((one, other) => (one > other ? one : other));
  const at = circle.indexOf(youngest);
  return [...circle.slice(at), ...circle.slice(0, at), youngest];
}

/** Of a job that waits for itself: its own id, twice, is all that there is of the circle. */
export const circleOf = (error: unknown): string[] => {
  const detail = (error as { detail?: string }).detail ?? '';
  return [detail, detail];
};
