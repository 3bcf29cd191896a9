// Which jobs a spec means, and how it is told that there are none.
import { AssertionError } from 'node:assert';
import { inspect, type InspectOptions } from 'node:util';
import type { AddedJob, Job } from '../interfaces/job.interface.js';
import type { TaskToken } from '../interfaces/task.interface.js';

/**
 * What is looked for: fields of `Job`, compared as far as they are given. A payload needs to hold what is given, at any
 * depth; arrays are compared whole. Matchers of Jest and Vitest (`expect.any(String)` …) may stand anywhere, and regular
 * expressions in the place of texts.
 */
export interface EnqueuedFilter extends Partial<Omit<Job, 'task' | 'payload'>> {
  task?: string | TaskToken | undefined;
  payload?: unknown;
}

/** Jobs that wait to run, for whatever reason. */
const WAITING = ['available', 'scheduled', 'blocked', 'snoozed'];
const MAX_LISTED = 20;
const SHOWN: InspectOptions = { depth: 6, breakLength: Infinity, compact: true };

/** Waiting jobs that match, or jobs of the status that the filter names. The filter must have no faults. */
export function matchingJobs<J extends Job>(jobs: J[], filter: EnqueuedFilter): J[] {
  const expected = given({ ...filter, task: nameOf(filter) });
  return waiting(jobs, filter).filter((job) => matches(job, expected));
}

const waiting = <J extends Job>(jobs: J[], { status }: EnqueuedFilter): J[] =>
  status === undefined ? jobs.filter((job) => WAITING.includes(job.status)) : jobs;

const given = (fields: object): object =>
  Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined));

function matches(actual: unknown, expected: unknown): boolean {
  if (isMatcher(expected)) return expected.asymmetricMatch(actual);
  if (typeof expected !== 'object' || expected === null) return Object.is(actual, expected);
  if (expected instanceof RegExp) return typeof actual === 'string' && new RegExp(expected).test(actual);
  // Stored as JSON, a date of a payload is a string.
  if (expected instanceof Date)
    return inspect(actual) === inspect(typeof actual === 'string' ? expected.toJSON() : expected);
  if (typeof actual !== 'object' || actual === null || Array.isArray(actual) !== Array.isArray(expected)) return false;
  if (Array.isArray(expected) && expected.length !== (actual as unknown[]).length) return false;
  return Object.entries(expected).every(([key, value]) => matches((actual as Record<string, unknown>)[key], value));
}

export const isMatcher = (value: unknown): value is { asymmetricMatch: (actual: unknown) => boolean } =>
  typeof (value as { asymmetricMatch?: unknown } | null | undefined)?.asymmetricMatch === 'function';

/** What a spec expected and did not get. */
export interface Disappointment {
  filter: EnqueuedFilter;
  /** How many were expected; undefined: at least one. */
  times: number | undefined;
  found: Job[];
  jobs: Job[];
  /** What was added through the manager, transactions that rolled back included. */
  added: AddedJob[];
}

/** Says what was expected, and lists what there is. */
export function assertionError({ filter, times, found, jobs, added }: Disappointment): AssertionError {
  const expected = times === undefined ? 'a job' : times === 0 ? 'no job' : `exactly ${times} of a job`;
  const sought = Object.keys(given(filter)).length ? ` like ${show({ ...filter, task: nameOf(filter) })}` : '';
  const message = [
    `Expected ${expected}${sought} to be enqueued, got ${found.length || 'none'}. ${listOf(waiting(jobs, filter))}`,
    ...hintsOf(filter, times, jobs, added),
  ].join('\n');
  return new AssertionError({ message, actual: found.length, expected: times ?? 1, operator: 'expectEnqueued' });
}

function listOf(jobs: Job[]): string {
  if (!jobs.length) return 'Nothing is enqueued.';
  const lines = jobs.slice(0, MAX_LISTED).map((job, index) => `  ${index + 1}. ${describe(job)}`);
  const more = jobs.length > MAX_LISTED ? [`  … and ${jobs.length - MAX_LISTED} more`] : [];
  return ['Enqueued are:', ...lines, ...more].join('\n');
}

function describe({ task, payload, status, queue, priority, runAt }: Job): string {
  const details = [
    status,
    ...(queue === null ? [] : [`queue ${queue}`]),
    ...(priority === 0 ? [] : [`priority ${priority}`]),
    ...(status === 'scheduled' || status === 'snoozed' ? [`runs at ${runAt.toISOString()}`] : []),
  ];
  return `${task} ${show(payload)} (${details.join(', ')})`;
}

/** Where a job of that kind went, if there was one. */
function hintsOf(filter: EnqueuedFilter, times: number | undefined, jobs: Job[], added: AddedJob[]): string[] {
  if (times === 0 || filter.status !== undefined) return [];
  const known = new Map(jobs.map((job) => [job.id, job]));
  const alike = matchingJobs(added, filter);
  const unseen = alike.filter(({ id }) => !known.has(id)).length;
  const past = alike.flatMap(({ id }) => known.get(id) ?? []).filter(({ status }) => !WAITING.includes(status));
  return [
    ...(unseen
      ? [
          `${unseen} like it cannot be seen: the transaction is open (pass { manager }) or was rolled back; see testing.added.`,
        ]
      : []),
    ...past.map(({ id, status }) => `Job ${id} is like it, but ${status} already.`),
  ];
}

/** A name, a pattern for it, or undefined. */
const nameOf = ({ task }: EnqueuedFilter): unknown =>
  typeof task === 'object' && !isMatcher(task) && !(task instanceof RegExp) ? task.task : task;

const show = (value: unknown): string => inspect(isRecord(value) ? given(value) : value, SHOWN);

const isRecord = (value: unknown): value is object =>
  typeof value === 'object' && value !== null && Object.getPrototypeOf(value) === Object.prototype;
