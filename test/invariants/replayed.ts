// Lives of a queue that went wrong once, as fast-check printed them when they were as short as they get.
import type { Action, NewJob } from './actions.js';

export const replayed: Action[][] = [
  [
    // A child that was cancelled, then retried, ran before its parent.
    { do: 'add', jobs: [job()] },
    { do: 'add', jobs: [job({ parents: [0] })] },
    { do: 'cancel', job: 1 },
    { do: 'retry', job: 1 },
  ],
];

function job(more: Partial<NewJob> = {}): NewJob {
  const plain = {
    task: 'a',
    priority: 0,
    due: true,
    flagged: false,
    maxAttempts: 1,
    queue: null,
    limit: null,
    key: null,
  };
  return { ...plain, mode: 'replace', parents: [], policy: 'cancel', ...more };
}
