// What processes tell each other through NOTIFY: hints that something may run, or must end. Losing one costs a poll, a
// sweep or a heartbeat.

export type News =
  /** Plain jobs of these priorities are due; null: of any. */
  | { kind: 'jobs'; priorities: number[] | null }
  /** Something in lanes that begin like these may run. */
  | { kind: 'lanes'; lanes: string[] }
  /** Anything may run. */
  | { kind: 'all' }
  /** A bulk action was asked for. */
  | { kind: 'bulk' }
  /** Something was paused or resumed, in lanes that begin like these alone where there are some: pools ask what. */
  | { kind: 'pauses'; lanes?: string[] }
  /** Claims of these jobs were taken from their holders; none: of any. */
  | { kind: 'ended'; ids: string[] }
  /** These running jobs are to be cancelled, whether their rows say so yet or not. */
  | { kind: 'cancelled'; ids: string[]; reason: string | null }
  /** Jobs that wait for these were added, or some that took their keys: these may have ended meanwhile. */
  | { kind: 'parents'; ids: string[] };

/** PostgreSQL takes less than 8,000 bytes. */
const MAX_BYTES = 7_000;
const MAX_IDS = 100;
const MAX_REASON = 500;

/** The messages to send for some news: the shortest form that loses nothing. */
export function toMessages(news: News): string[] {
  if (news.kind === 'jobs') return [jobsMessage(news.priorities)];
  if (news.kind === 'bulk') return [JSON.stringify(news)];
  if (news.kind === 'lanes' || news.kind === 'all') {
    const text = JSON.stringify(news);
    return [Buffer.byteLength(text) > MAX_BYTES ? JSON.stringify({ kind: 'all' }) : text];
  }
  if (news.kind === 'pauses') return [JSON.stringify(news)];
  const reason = 'reason' in news && { reason: news.reason?.slice(0, MAX_REASON) ?? null };
  const messages: string[] = [];
  for (let start = 0; start < news.ids.length; start += MAX_IDS) {
    messages.push(JSON.stringify({ kind: news.kind, ids: news.ids.slice(start, start + MAX_IDS), ...reason }));
  }
  return messages;
}

/** Most jobs have priority 0: what says so is the shortest, and PostgreSQL folds repeats. */
function jobsMessage(priorities: number[] | null): string {
  if (priorities?.length === 1 && priorities[0] === 0) return '';
  return JSON.stringify({ kind: 'jobs', priorities: priorities && priorities.length <= MAX_IDS ? priorities : null });
}

/** What cannot be read may mean anything. */
export function readMessage(message: string): News {
  if (message === '') return { kind: 'jobs', priorities: [0] };
  try {
    return JSON.parse(message) as News;
  } catch {
    return { kind: 'all' };
  }
}
