// The two libraries that carry a transaction along with the call, each as an application wires it.
import { Inject, Injectable, Module, type ModuleMetadata } from '@nestjs/common';
import type { TestingModule } from '@nestjs/testing';
import { getDataSourceToken, InjectRepository, TypeOrmModule } from '@nestjs/typeorm';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from '@jest/globals';
import { DataSource, type DataSourceOptions, type EntityManager, EntitySchema, type Repository } from 'typeorm';
import {
  addTransactionalDataSource,
  deleteDataSourceByName,
  initializeTransactionalContext,
  runInTransaction,
  StorageDriver,
  Transactional,
} from 'typeorm-transactional';
import {
  createJobManager,
  defineTask,
  getJobsToken,
  JobManager,
  JobsModule,
  Task,
  TransactionOverError,
  WorkerPool,
} from '../../lib/index.js';
import { applicationsOnOneDatabase, type Applications } from '../support/app.js';
import { eventually } from '../support/database.js';
import {
  ClsModule,
  ClsPluginTransactional,
  Transactional as ClsTransactional,
  TransactionalAdapterTypeOrm,
  TransactionHost,
} from '../support/nestjs-cls.js';

type Propagation = 'REQUIRED' | 'REQUIRES_NEW' | 'NESTED' | 'NOT_SUPPORTED';

interface Ambient {
  imports: (url: string) => ModuleMetadata['imports'];
  /** The service whose methods are transactions by decorator. */
  service: new (...parts: any[]) => { place(id: number, fate: Fate): Promise<void> };
  run: <T>(work: () => Promise<T>, propagation?: Propagation, connection?: string) => Promise<T>;
  /** What the application writes its own rows on. */
  manager: (app: TestingModule) => EntityManager;
  stop: () => void;
}

type Fate = 'commits' | 'fails';

const OTHER = 'other';

const Order = new EntitySchema<{ id: number }>({
  name: 'Order',
  tableName: 'orders',
  columns: { id: { type: 'int', primary: true } },
});

/** A promise, and what resolves it. */
function gateway(): { promise: Promise<void>; resolve: () => void } {
  let resolve!: () => void;
  return { promise: new Promise<void>((done) => (resolve = done)), resolve };
}

class Failure extends Error {}

const finish = (fate: Fate): void => {
  if (fate === 'fails') throw new Failure('on purpose');
};

@Injectable()
class PatchedOrders {
  constructor(
    @InjectRepository(Order) private readonly orders: Repository<{ id: number }>,
    private readonly jobs: JobManager,
  ) {}

  @Transactional()
  async place(id: number, fate: Fate): Promise<void> {
    await this.orders.insert({ id });
    await this.jobs.addJob('ship', id);
    finish(fate);
  }
}

@Injectable()
class ClsOrders {
  constructor(
    @Inject(TransactionHost) private readonly host: { tx: EntityManager },
    private readonly jobs: JobManager,
  ) {}

  @ClsTransactional()
  async place(id: number, fate: Fate): Promise<void> {
    await this.host.tx.getRepository(Order).insert({ id });
    await this.jobs.addJob('ship', id);
    finish(fate);
  }
}

/** The handler opens a transaction of its own. */
@Injectable()
class ShipTasks {
  @Inject('orders')
  private readonly orders!: { place(id: number, fate: Fate): Promise<void> };

  @Task('restock')
  async restock({ id, fate }: { id: number; fate: Fate }): Promise<void> {
    await this.orders.place(id, fate);
  }
}

function typeorm(url: string, enlist: (name: string, dataSource: DataSource) => DataSource) {
  const of = (name: string, more: object) =>
    TypeOrmModule.forRootAsync({
      name,
      // The name once more: NestJS 11 closes the DataSource that the options name.
      useFactory: () => ({ name, type: 'postgres', url, ...more }),
      dataSourceFactory: async (options?: DataSourceOptions) => enlist(name, new DataSource(options!)),
    });
  return [of('default', { entities: [Order], synchronize: true }), of(OTHER, {})];
}

const clsPlugin = (name?: string) =>
  new ClsPluginTransactional({
    ...(name && { connectionName: name }),
    adapter: new TransactionalAdapterTypeOrm({ dataSourceToken: getDataSourceToken(name) }),
  });

const nestjsCls: Ambient = {
  imports: (url) => [
    ClsModule.forRoot({ plugins: [clsPlugin(), clsPlugin(OTHER)] }),
    ...typeorm(url, (_name, dataSource) => dataSource),
  ],
  service: ClsOrders,
  run: (work, propagation = 'REQUIRED', connection) =>
    TransactionHost.getInstance(connection).withTransaction(propagation as never, work),
  manager: () => TransactionHost.getInstance().tx as EntityManager,
  stop: () => undefined,
};

const typeormTransactional = (): Ambient => ({
  imports: (url) => {
    initializeTransactionalContext({ storageDriver: StorageDriver.AUTO });
    return typeorm(url, (name, dataSource) => addTransactionalDataSource({ name, dataSource }));
  },
  service: PatchedOrders,
  run: (work, propagation = 'REQUIRED', connectionName = 'default') =>
    runInTransaction(work, { propagation: propagation as never, connectionName }),
  manager: (app) => app.get(DataSource).manager,
  stop: () => ['default', OTHER].forEach(deleteDataSourceByName),
});

describe.each<[string, () => Ambient]>([
  ['@nestjs-cls/transactional', () => nestjsCls],
  ['typeorm-transactional', typeormTransactional],
])('a transaction of %s', (library, make) => {
  const ambient = make();
  let apps: Applications;
  let app: TestingModule;
  let jobs: JobManager;

  beforeAll(async () => {
    apps = await applicationsOnOneDatabase();
    const { url } = apps.database;
    app = await apps.start({
      imports: [
        JobsModule.forRoot({ worker: { autoStart: false, pollIntervalMs: 600_000, maxPollIntervalMs: 600_000 } }),
        JobsModule.forRoot({ name: 'own-pool', connection: url, worker: false }),
        JobsModule.forRootAsync({
          name: OTHER,
          inject: [getDataSourceToken(OTHER)],
          useFactory: (dataSource: DataSource) => ({ dataSource, worker: false }),
        }),
        ...ambient.imports(url)!,
        TypeOrmModule.forFeature([Order]),
      ],
      providers: [ShipTasks, { provide: 'orders', useClass: ambient.service }],
    });
    jobs = app.get(JobManager);
  });
  beforeEach(() => apps.database.pool.query('truncate orders, jobs.jobs, jobs.job_bodies, jobs.job_history'));
  afterAll(async () => {
    await apps.close();
    ambient.stop();
    await apps.drop();
  });

  const numbers = async (text: string): Promise<number[]> =>
    (await apps.database.pool.query<{ n: number }>(text)).rows.map(({ n }) => Number(n)).toSorted((a, b) => a - b);
  /** What everybody else can see. */
  const committed = async (): Promise<{ orders: number[]; shipped: number[] }> => ({
    orders: await numbers('select id as n from orders'),
    shipped: await numbers('select payload::text as n from jobs.jobs join jobs.job_bodies using (id)'),
  });
  const order = async (id: number): Promise<void> => {
    await ambient.manager(app).insert(Order, { id });
    await jobs.addJob('ship', id);
  };
  const failing = (work: () => Promise<unknown>, propagation?: Propagation): Promise<void> =>
    expect(
      ambient.run(async () => {
        await work();
        finish('fails');
      }, propagation),
    ).rejects.toThrow(Failure);

  it('shows the job when it commits, together with the row', async () => {
    await ambient.run(async () => {
      await order(1);
      expect(await committed()).toEqual({ orders: [], shipped: [] });
    });
    expect(await committed()).toEqual({ orders: [1], shipped: [1] });
  });

  it('takes the job with it when it rolls back', async () => {
    await failing(() => order(1));
    expect(await committed()).toEqual({ orders: [], shipped: [] });
  });

  it('holds all jobs of addJobs', async () => {
    const three = () => jobs.addJobs([1, 2, 3].map((payload) => ({ task: 'ship', payload })));
    await failing(three);
    expect(await committed()).toMatchObject({ shipped: [] });
    await ambient.run(async () => {
      await three();
      expect(await committed()).toMatchObject({ shipped: [] });
    });
    expect(await committed()).toMatchObject({ shipped: [1, 2, 3] });
  });

  it('holds jobs with keys', async () => {
    await failing(() => jobs.addJob('ship', 1, { jobKey: 'one' }));
    expect(await committed()).toMatchObject({ shipped: [] });
  });

  it('is joined by the methods of a service that are decorated', async () => {
    const orders = app.get<InstanceType<Ambient['service']>>('orders');
    await orders.place(1, 'commits');
    await expect(orders.place(2, 'fails')).rejects.toThrow(Failure);
    expect(await committed()).toEqual({ orders: [1], shipped: [1] });
  });

  it('holds the jobs of calls that share it', async () => {
    await failing(() => ambient.run(() => order(1)));
    expect(await committed()).toEqual({ orders: [], shipped: [] });
  });

  it('keeps its jobs apart from those of one with REQUIRES_NEW inside it', async () => {
    await failing(async () => {
      await order(1);
      await ambient.run(() => order(2), 'REQUIRES_NEW');
      await order(3);
    });
    expect(await committed()).toEqual({ orders: [2], shipped: [2] });
  });

  it('loses only the jobs of a nested one that fails', async () => {
    await ambient.run(async () => {
      await order(1);
      await failing(() => order(2), 'NESTED');
    });
    expect(await committed()).toEqual({ orders: [1], shipped: [1] });
  });

  it('is left by NOT_SUPPORTED, and entered again after it', async () => {
    await failing(async () => {
      await ambient.run(() => order(1), 'NOT_SUPPORTED');
      expect(await committed()).toEqual({ orders: [1], shipped: [1] });
      await order(2);
    });
    expect(await committed()).toEqual({ orders: [1], shipped: [1] });
  });

  it('changes nothing for those outside of it', async () => {
    await order(1);
    expect(await committed()).toEqual({ orders: [1], shipped: [1] });
    await ambient.run(() => order(2));
    await order(3);
    expect(await committed()).toEqual({ orders: [1, 2, 3], shipped: [1, 2, 3] });
  });

  it('gives way to a manager that is handed in', async () => {
    const runner = app.get(DataSource).createQueryRunner();
    await runner.startTransaction();
    await failing(async () => {
      await jobs.addJob('ship', 1, { manager: runner });
      await jobs.addJobs([{ task: 'ship', payload: 2 }], { manager: runner });
    });
    expect(await committed()).toMatchObject({ shipped: [] });
    await runner.commitTransaction();
    await runner.release();
    expect(await committed()).toMatchObject({ shipped: [1, 2] });
  });

  it('is joined only by the instance that works on its DataSource', async () => {
    const instance = (name: string) => app.get<JobManager>(getJobsToken(JobManager, name));
    const work = async (): Promise<void> => {
      await jobs.addJob('ship', 1);
      await instance('own-pool').addJob('ship', 2);
      await instance(OTHER).addJob('ship', 3);
      finish('fails');
    };
    await expect(ambient.run(work, 'REQUIRED', OTHER)).rejects.toThrow(Failure);
    expect(await committed()).toMatchObject({ shipped: [1, 2] });
    await expect(ambient.run(work)).rejects.toThrow(Failure);
    expect(await committed()).toMatchObject({ shipped: [1, 2, 2, 3] });
  });

  it('is each caller’s own, however they interleave', async () => {
    const ids = Array.from({ length: 8 }, (_, id) => id);
    let arrived = 0;
    const all = gateway();
    await Promise.allSettled(
      ids.map((id) =>
        ambient.run(async () => {
          await order(id);
          if (++arrived === ids.length) all.resolve();
          await all.promise;
          await jobs.addJob('ship', 100 + id);
          finish(id % 2 ? 'fails' : 'commits');
        }),
      ),
    );
    expect(await committed()).toEqual({ orders: [0, 2, 4, 6], shipped: [0, 2, 4, 6, 100, 102, 104, 106] });
  });

  it('that is over before a forgotten add is inserted refuses it', async () => {
    const gate = gateway();
    const validate = async (value: unknown) => gate.promise.then(() => ({ value }));
    const slow = defineTask('slow', { '~standard': { version: 1, vendor: 'spec', validate } });
    let forgotten: Promise<unknown> | undefined;
    await ambient.run(async () => {
      await order(1);
      forgotten = jobs.addJob(slow, 2);
      forgotten.catch(() => undefined);
    });
    gate.resolve();
    await expect(forgotten).rejects.toThrow(TransactionOverError);
    expect(await committed()).toMatchObject({ shipped: [1] });
  });

  // Work that outlives a transaction of typeorm-transactional is outside of any: it cannot be told that it was inside.
  if (library.startsWith('@')) {
    it('that is over refuses an add of forgotten work that still believes in it', async () => {
      const gate = gateway();
      let forgotten: Promise<void> | undefined;
      await ambient.run(async () => {
        await order(1);
        forgotten = ambient.run(async () => {
          await gate.promise;
          await jobs.addJob('ship', 2);
        });
        forgotten.catch(() => undefined);
      });
      gate.resolve();
      await expect(forgotten).rejects.toThrow(TransactionOverError);
      expect(await committed()).toMatchObject({ shipped: [1] });
    });
  }

  it('wakes a worker when it commits, whose handler may open its own', async () => {
    const pool = app.get(WorkerPool);
    await pool.start();
    const [first, second] = await ambient.run(() =>
      jobs.addJobs([
        { task: 'restock', payload: { id: 1, fate: 'commits' } },
        { task: 'restock', payload: { id: 2, fate: 'fails' }, maxAttempts: 1 },
      ]),
    );
    await eventually(async () => {
      expect(await jobs.findJob(first!.id)).toMatchObject({ status: 'completed' });
      expect(await jobs.findJob(second!.id)).toMatchObject({ status: 'exhausted', lastError: 'on purpose' });
      return true;
    });
    expect(await numbers('select id as n from orders')).toEqual([1]);
    await pool.stop();
    expect((await jobs.listJobs({ task: 'ship' })).items.map(({ payload }) => payload)).toEqual([1]);
  });

  it(`is ${library.startsWith('@') ? 'not ' : ''}seen by a manager made outside Nest`, async () => {
    const plain = await createJobManager({ dataSource: app.get(DataSource) });
    await failing(() => plain.addJob('ship', 1));
    await plain.close();
    expect(await committed()).toMatchObject({ shipped: library.startsWith('@') ? [1] : [] });
  });
});

describe('an add while Nest is still making the TransactionHost of @nestjs-cls/transactional', () => {
  it('commits on its own', async () => {
    const apps = await applicationsOnOneDatabase();
    const dataSource = await new DataSource({ type: 'postgres', url: apps.database.url }).initialize();
    const added = gateway();
    @Module({
      providers: [{ provide: 'late', useFactory: () => added.promise.then(() => dataSource) }],
      exports: ['late'],
    })
    class LateModule {}
    const plugin = new ClsPluginTransactional({
      imports: [LateModule],
      adapter: new TransactionalAdapterTypeOrm({ dataSourceToken: 'late' }),
    });
    const useFactory = async (jobs: JobManager) => {
      const job = await jobs.addJob('early', 1);
      added.resolve();
      return job;
    };
    const app = await apps.start({
      imports: [JobsModule.forRoot({ dataSource, worker: false }), ClsModule.forRoot({ plugins: [plugin] })],
      providers: [{ provide: 'early', inject: [JobManager], useFactory }],
    });
    expect(await app.get(JobManager).findJob(app.get<{ id: string }>('early').id)).toMatchObject({ payload: 1 });
    await apps.close();
    await dataSource.destroy();
    await apps.drop();
  });
});
