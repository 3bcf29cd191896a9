// The faults of a chaos run. Each is put in place, lasts for a while, and is taken away again.
import process from 'node:process';
import { setTimeout as sleep } from 'node:timers/promises';

/** What workers give their jobs when they are asked to end. */
export const GRACE_MS = 5_000;
/** How long a worker may take to end when it is asked to: its own grace period, and the machine's slowness. */
const TERM_PATIENCE_MS = 20_000;

/** What happens to processes. Each gets { fleet, random, note, rescues }. */
export const PROCESS_FAULTS = [
  {
    name: 'kill -9 of a worker',
    weight: 6,
    inject: async ({ fleet, random, rescues }) => {
      const victim = random.pick(fleet.active);
      if (!victim) return false;
      fleet.kill(victim);
      await victim.ended;
      rescues.watch(victim.id);
    },
  },
  {
    name: 'kill -9 of all workers',
    weight: 1,
    inject: async ({ fleet, rescues }) => {
      const victims = fleet.active;
      for (const victim of victims) fleet.kill(victim);
      await Promise.all(victims.map(({ ended }) => ended));
      for (const { id } of victims) rescues.watch(id);
    },
  },
  {
    name: 'SIGTERM under load',
    weight: 4,
    inject: async ({ fleet, random, rescues, breakPromise }) => {
      const victim = random.pick(fleet.active);
      if (!victim) return false;
      const calm = rescues.calmSince();
      const tookMs = await fleet.terminate(victim, TERM_PATIENCE_MS);
      if (tookMs === undefined)
        breakPromise(
          'a deploy loses nothing',
          `${victim.id} did not end when asked to: it was ending ${victim.stopping}`,
        );
      // With the database at hand, nothing may be left for the lease to end; unless a handler blocked the process for so
      // long that its time was up before it could do anything.
      if (calm() && tookMs < GRACE_MS) {
        const locked = await rescues.lockedBy(victim.id);
        if (locked && calm()) breakPromise('a deploy loses nothing', `${victim.id} left ${locked} jobs locked`);
      }
    },
  },
  {
    name: 'SIGSTOP beyond the lease',
    weight: 2,
    inject: async ({ fleet, random, leaseMs, rescues }) => {
      const victim = random.pick(fleet.active);
      if (!victim) return false;
      fleet.freeze(victim);
      rescues.watch(victim.id, () => victim.frozen);
      await sleep(leaseMs + random.between(1_000, 4_000));
      fleet.resume(victim);
    },
  },
];

/** What happens to the database and the way to it. Each gets { cluster, proxy, random }. */
export const DATABASE_FAULTS = [
  {
    name: 'connections cut',
    weight: 5,
    inject: async ({ proxy, random }) => {
      for (let n = 0; n < 5; n++) {
        proxy.cut(() => random.next() < 0.5);
        await sleep(random.between(20, 400));
      }
    },
  },
  {
    name: 'connections half-closed',
    weight: 3,
    inject: async ({ proxy, random }) => {
      proxy.halfClose(() => random.next() < 0.5);
      await sleep(500);
    },
  },
  {
    name: 'silent connections',
    weight: 2,
    inject: async ({ proxy, random }) => {
      proxy.blackHole(() => random.next() < 0.5);
      await sleep(random.between(2_000, 9_000));
    },
  },
  {
    name: 'slow network',
    weight: 2,
    inject: async ({ proxy, random }) => {
      proxy.delayMs = random.between(20, 150);
      await sleep(random.between(1_000, 4_000));
    },
  },
  {
    name: 'connections refused',
    weight: 2,
    inject: async ({ proxy, random }) => {
      proxy.refusing = true;
      proxy.cut();
      await sleep(random.between(500, 6_000));
    },
  },
  {
    name: 'backends terminated',
    weight: 4,
    inject: async ({ cluster, random }) => {
      for (let n = 0; n < 4; n++) {
        await terminate(cluster, `and random() < ${random.between(0.2, 0.9)}`);
        await sleep(random.between(50, 400));
      }
    },
  },
  {
    name: 'listeners terminated',
    weight: 2,
    inject: async ({ cluster }) => terminate(cluster, `and query ilike 'listen%'`),
  },
  {
    name: 'backend killed by the system',
    weight: 2,
    inject: async ({ cluster, random }) => {
      const pids = await cluster.withAdmin((admin) =>
        admin.query(`select pid from pg_stat_activity where usename = 'app'`).then(({ rows }) => rows),
      );
      if (pids.length === 0) return false;
      process.kill(random.pick(pids).pid, 'SIGKILL');
      await cluster.recovered();
    },
  },
  {
    name: 'PostgreSQL crash and restart',
    weight: 3,
    inject: ({ cluster, random }) => cluster.crashAndRestart(random.between(0, 4_000)),
  },
  {
    name: 'failover to the standby',
    weight: 2.5,
    inject: async ({ cluster, proxy, random }) => {
      if (!cluster.hasStandby) {
        await cluster.buildStandby();
        return 'PostgreSQL restarted in order, with a new standby';
      }
      await cluster.promote();
      await sleep(random.between(0, 1_000));
      proxy.target = cluster.port;
      proxy.cut();
      return undefined;
    },
  },
  {
    name: 'statement timeout',
    weight: 2,
    inject: ({ cluster, random }) =>
      withRole(cluster, random, `set statement_timeout = '${random.pick([1, 3, 10])}ms'`, 'reset statement_timeout'),
  },
  {
    name: 'too many connections',
    weight: 2,
    inject: ({ cluster, random }) =>
      withRole(cluster, random, `connection limit ${random.pick([0, 2, 5])}`, 'connection limit -1'),
  },
  {
    name: 'read-only database',
    weight: 2,
    inject: ({ cluster, random }) =>
      withRole(cluster, random, 'set default_transaction_read_only = on', 'reset default_transaction_read_only'),
  },
  {
    name: 'old snapshot held open',
    weight: 1,
    inject: ({ cluster, random }) =>
      cluster.withAdmin(async (admin) => {
        await admin.query('begin isolation level repeatable read');
        await admin.query('select count(*) from jobs.jobs');
        await sleep(random.between(3_000, 8_000));
      }),
  },
];

/** Tables in which other transactions may hold rows, and how many at most. */
const HELD = {
  jobs: 20,
  job_bodies: 20,
  job_places: 5,
  job_queues: 3,
  job_keys: 6,
  job_dependencies: 10,
  rate_limits: 1,
  rate_limit_states: 2,
  rate_limit_blocks: 1,
  workers: 2,
  duties: 2,
  crontabs: 1,
};

/** What others do in their own transactions. Each gets { cluster, random }. */
export const STRANGERS = Object.entries(HELD).map(([table, most]) => ({
  name: `rows of ${table} held`,
  weight: table === 'jobs' ? 4 : 1,
  inject: ({ cluster, random }) =>
    cluster.withAdmin(async (admin) => {
      await admin.query('begin; set local idle_in_transaction_session_timeout = 0');
      await admin.query(`select from jobs.${table} order by random() limit $1 for update skip locked`, [
        Math.ceil(random.between(0, most)),
      ]);
      await sleep(random.between(1_000, 20_000));
      await admin.query('rollback');
    }),
}));

/** Takes away whatever a fault of the database may have left, even if it ended in an error. */
export async function healDatabase({ cluster, proxy }) {
  proxy.heal();
  await cluster.recovered();
  proxy.target = cluster.port;
}

const terminate = (cluster, which) =>
  cluster.withAdmin(async (admin) => {
    await admin.query(`select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app' ${which}`);
  });

/** New sessions of the application get the setting for a while; old ones are ended, before and after. */
async function withRole(cluster, random, set, unset) {
  const alter = (how) => cluster.withAdmin((admin) => admin.query(`alter role app ${how}`));
  await alter(set);
  try {
    await terminate(cluster, '');
    await sleep(random.between(1_000, 5_000));
  } finally {
    await alter(unset);
    await terminate(cluster, '');
  }
}
