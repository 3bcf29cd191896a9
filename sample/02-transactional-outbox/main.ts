// Orders and payments while workers are killed in the middle of them; at the end the books must balance.
import 'reflect-metadata';
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { NestFactory } from '@nestjs/core';
import { JobManager } from 'millrace';
import { startEmbeddedPostgres } from 'millrace/embedded';
import { DataSource } from 'typeorm';
import { AppModule } from './app.module.js';
import { OrdersService } from './orders.service.js';

const ORDERS = 600;
const KILLS = 4;
const STORY_TIMEOUT_MS = 120_000;

async function main(): Promise<void> {
  const database = process.env.DATABASE_URL ? null : await startEmbeddedPostgres();
  process.env.DATABASE_URL ??= database!.url;
  const shop = await NestFactory.createApplicationContext(AppModule.as('shop'), { logger: ['error'] });
  shop.enableShutdownHooks();
  const workers: ChildProcess[] = [];
  try {
    process.exitCode = (await runStory(shop.get(OrdersService), shop.get(JobManager), shop.get(DataSource), workers))
      ? 0
      : 1;
  } finally {
    await Promise.all(workers.map((worker) => end(worker, 'SIGTERM')));
    await shop.close();
    await database?.stop();
  }
}

async function runStory(orders: OrdersService, jobs: JobManager, dataSource: DataSource, workers: ChildProcess[]) {
  const names = ['Ada', 'Grace', 'Edsger', 'Barbara', 'Donald'];
  await Promise.all(
    Array.from({ length: ORDERS }, (_, n) => orders.place(names[n % names.length]!, 1_000 + ((n * 37) % 9_000))),
  );
  console.log(`${ORDERS} orders placed, each with the job that charges it, in one transaction each`);
  workers.push(await startWorker(), await startWorker());
  let kills = 0;
  const deadline = Date.now() + STORY_TIMEOUT_MS;
  for (;;) {
    const [{ paid }] = (await dataSource.query(`select count(*)::int as paid from payments`)) as [{ paid: number }];
    // Spread over the whole story: each kill strikes in the middle of some payments.
    if (kills < KILLS && paid >= ((kills + 1) * ORDERS) / (KILLS + 1)) {
      await end(workers.shift()!, 'SIGKILL');
      console.log(`${paid} paid; kill -9 of a worker in the middle of its payments (${++kills} of ${KILLS})`);
      workers.push(await startWorker());
    }
    const { byStatus } = await jobs.counts();
    if (byStatus.completed === 2 * ORDERS) break;
    if (Date.now() > deadline) throw new Error(`Expected all jobs to end within ${STORY_TIMEOUT_MS / 1_000} s.`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  return balance(dataSource, kills);
}

async function balance(dataSource: DataSource, kills: number): Promise<boolean> {
  const [books] = (await dataSource.query(`
    select (select count(*) from orders)::int as orders,
      (select count(*) from orders where status = 'paid')::int as paid,
      (select count(*) from payments)::int as payments,
      (select count(*) from (select "orderId" from payments group by 1 having count(*) > 1) twice)::int as "charged twice",
      (select sum(total) from orders)::int = (select sum(amount) from payments)::int as balanced,
      (select count(*) from receipts)::int as receipts,
      (select count(*) from jobs.job_history where error_message = 'worker died')::int as "attempts that died"
  `)) as [Record<string, number | boolean>];
  console.log();
  const table = { ...books, kills };
  for (const [name, value] of Object.entries(table)) console.log(`${name.padEnd(20)}${String(value).padStart(6)}`);
  return agree({
    'every order was paid': books.paid === ORDERS && books.payments === ORDERS,
    'no order was charged twice': books['charged twice'] === 0,
    'the books balance': books.balanced === true,
    'every payment has one receipt': books.receipts === ORDERS,
    'workers were killed in the middle of it': kills === KILLS,
  });
}

async function startWorker(): Promise<ChildProcess> {
  const worker = fork(fileURLToPath(new URL('./worker.js', import.meta.url)));
  await once(worker, 'message');
  return worker;
}

async function end(worker: ChildProcess, signal: NodeJS.Signals): Promise<void> {
  if (worker.exitCode !== null || worker.signalCode !== null) return;
  const exited = once(worker, 'exit');
  worker.kill(signal);
  await exited;
}

function agree(checks: Record<string, boolean>): boolean {
  for (const [claim, holds] of Object.entries(checks)) console.log(`${holds ? 'ok  ' : 'FAIL'} ${claim}`);
  return Object.values(checks).every(Boolean);
}

main().catch((error: unknown) => {
  console.error(error);
  process.exitCode = 1;
});
