// Two connections whose statements run in every order: each statement waits at a gate until it is its turn, and a
// connection that waits for the other's locks is seen in pg_blocking_pids.
import pg from 'pg';
import { createJobManager, type JobManager } from '../../lib/index.js';
import { eventually } from '../support/database.js';
import type { Sql } from './invariants.js';

/**
 * What has no turn of its own: beginnings of transactions, locks of tables that do not conflict, registries, sweeps that find
 * nothing, reads at the end.
 */
const UNIMPORTANT = new RegExp(['^begin', 'hold_tables', 'job_tasks', 'job_progress p ', 'pg_notify\\(\\$1'].join('|'));
/** So often one may send the same statement before the other, if it waits, has its turn. */
const MOST_TRIES = 3;
/** So long a statement may run before it is asked whether it waits for a lock. */
const MOMENT_MS = 2;
const END = /^(commit|rollback)/;

/** A connection whose statements wait for their turn while a conductor is at work. */
class GatedClient extends pg.Client {
  static gates = new WeakMap<pg.ClientBase, Gate>();

  // pg has many ways to call it; the last argument tells whether an answer is called back or promised.
  query(...asked: any[]): any {
    const send = (...given: any[]): any => (pg.Client.prototype.query as (...all: any[]) => any).apply(this, given);
    const gate = GatedClient.gates.get(this);
    const text = (typeof asked[0] === 'string' ? asked[0] : (asked[0] as { text: string }).text).trim();
    if (!gate?.stops(text)) return send(...asked);
    const callback = asked.at(-1) as unknown;
    if (typeof callback !== 'function') return gate.pass(text, () => send(...asked) as Promise<unknown>);
    const rest = asked.slice(0, -1);
    gate
      .pass(text, () => send(...rest) as Promise<unknown>)
      .then(
        (result) => callback(null, result),
        (error: unknown) => callback(error),
      );
    return undefined;
  }
}

class Gate {
  closed = false;
  /** Whether every statement waits, or only the first and the end of the transaction. */
  every = true;
  passed = 0;
  /** How often the same statement has been sent in a row: one that what others hold is in the way of is tried again. */
  tries = 0;
  private last = '';
  /** The statement that waits for its turn. */
  waiting: { text: string; open: () => void } | null = null;
  /** Called when a statement comes here, and when there will be no other. */
  settled: () => void = () => undefined;

  close(every: boolean): void {
    Object.assign(this, { closed: true, passed: 0, tries: 0, last: '', every });
  }

  stops(text: string): boolean {
    if (!this.closed || UNIMPORTANT.test(text)) return false;
    return this.every || this.passed === 0 || END.test(text) || text === this.last;
  }

  async pass<T>(text: string, send: () => Promise<T>): Promise<T> {
    this.tries = text === this.last ? this.tries + 1 : 0;
    this.last = text;
    this.passed++;
    await new Promise<void>((open) => {
      this.waiting = { text, open };
      this.settled();
    });
    return send();
  }

  open(): void {
    const { waiting } = this;
    this.waiting = null;
    waiting!.open();
  }
}

/** One of the two: a manager on a connection of its own. */
export class Actor {
  readonly gate = new Gate();
  state: 'idle' | 'busy' | 'done' = 'idle';
  failure: unknown = null;

  private constructor(
    readonly name: string,
    readonly jobs: JobManager,
    readonly client: pg.Client,
    readonly pid: number,
  ) {}

  static async create(name: string, url: string): Promise<Actor> {
    const clients: pg.Client[] = [];
    class Client extends GatedClient {
      constructor(config?: pg.ClientConfig) {
        super(config);
        clients.push(this);
      }
    }
    const pool = { connectionString: url, max: 1, idleTimeoutMillis: 0, Client } as pg.PoolConfig;
    const jobs = await createJobManager({ connection: pool, migrate: false, retry: { baseDelayMs: 3_600_000 } });
    await jobs.counts();
    const client = clients.find((one) => (one as { _connected?: boolean })._connected)!;
    const { rows } = await client.query<{ pid: number }>('select pg_backend_pid() as pid');
    const actor = new Actor(name, jobs, client, rows[0]!.pid);
    GatedClient.gates.set(client, actor.gate);
    return actor;
  }

  start(work: (actor: Actor) => Promise<unknown>, every: boolean): void {
    this.state = 'busy';
    this.failure = null;
    this.gate.close(every);
    work(this)
      .catch((error: unknown) => (this.failure = error))
      .finally(() => {
        this.state = 'done';
        this.gate.closed = false;
        this.gate.settled();
      });
  }
}

/** The orders in which two can act: one run after another takes a way that none has taken. */
export class Interleavings {
  private path: { options: string[]; taken: number }[] = [];
  private depth = 0;
  private switches = 0;
  private runs = 0;

  /** `mostSwitches`: how often the turn may pass from one to the other although the first could go on. */
  constructor(private readonly mostSwitches: number) {}

  /** False when every order has been run. */
  next(): boolean {
    if (this.runs++ === 0) return true;
    while (this.path.length && this.path.at(-1)!.taken + 1 >= this.path.at(-1)!.options.length) this.path.pop();
    if (!this.path.length) return false;
    this.path.at(-1)!.taken++;
    this.depth = 0;
    this.switches = 0;
    return true;
  }

  choose(ready: string[], last: string | undefined): string {
    const goesOn = last !== undefined && ready.includes(last);
    const chosen = this.pick(goesOn && this.switches >= this.mostSwitches ? [last] : ready);
    if (goesOn && chosen !== last) this.switches++;
    return chosen;
  }

  private pick(options: string[]): string {
    const known = this.path[this.depth++];
    if (known) return options.includes(known.options[known.taken]!) ? known.options[known.taken]! : options[0]!;
    this.path.push({ options, taken: 0 });
    return options[0]!;
  }

  get taken(): string {
    return this.path.map(({ options, taken }) => options[taken]).join('');
  }
}

/** Lets two work side by side, one statement at a time, in the next order. Returns the statements as they were sent. */
export async function interleave(
  order: Interleavings,
  sql: Sql,
  actors: Actor[],
  works: { run: (actor: Actor) => Promise<unknown>; every: boolean }[],
): Promise<string[]> {
  const log: string[] = [];
  let last: string | undefined;
  actors.forEach((actor, index) => actor.start(works[index]!.run, works[index]!.every));
  for (;;) {
    await settledDown(sql, actors);
    const ready = actors.filter(({ gate }) => gate.waiting);
    if (ready.length === 0) {
      if (actors.every(({ state }) => state === 'done')) return log;
      // Each waits for a lock: until a timeout, or PostgreSQL finds the deadlock.
      await eventually(() => actors.some(({ gate, state }) => gate.waiting ?? state === 'done'));
      continue;
    }
    // A call that tries again and again gets nowhere before the other has had a turn.
    const others = ready.filter(({ gate }) => gate.tries < MOST_TRIES);
    const name = order.choose(
      (others.length ? others : ready).map((actor) => actor.name),
      last,
    );
    last = name;
    const actor = ready.find((one) => one.name === name)!;
    log.push(`${name}: ${actor.gate.waiting!.text.replaceAll(/\s+/g, ' ').slice(0, 60)}`);
    actor.gate.open();
  }
}

const isAtWork = ({ gate, state }: Actor): boolean => state === 'busy' && !gate.waiting;

/** Until one of them waits at the gate or has ended, or a moment has passed. */
const oneSettles = (actors: Actor[]): Promise<void> =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, MOMENT_MS);
    for (const { gate } of actors)
      gate.settled = () => {
        clearTimeout(timer);
        resolve();
      };
  });

/** Until everybody waits at the gate, waits for a lock, or has ended. */
async function settledDown(sql: Sql, actors: Actor[]): Promise<void> {
  for (;;) {
    const moving = actors.filter(isAtWork);
    if (!moving.length) return;
    await oneSettles(moving);
    const open = moving.filter(isAtWork);
    if (!open.length) return;
    const [row] = await sql<{ waiting: number }>(
      `select count(*)::integer as waiting from unnest($1::integer[]) pid where cardinality(pg_blocking_pids(pid)) > 0`,
      [open.map(({ pid }) => pid)],
      'blocked',
    );
    if (open.every(isAtWork) && row!.waiting === open.length) return;
  }
}
