// Orders whose courier is busy, a job that waits for all of them, and a crontab that two workers share.
import 'reflect-metadata';
import type { INestApplicationContext } from '@nestjs/common';
import { NestFactory } from '@nestjs/core';
import { JobEvents, JobManager } from 'millrace';
import { startEmbeddedPostgres } from 'millrace/embedded';
import { AppModule } from './app.module.js';
import { World } from './world.js';

const ORDERS = 30;
const SLOTS = 4;

async function main(): Promise<void> {
  const database = process.env.DATABASE_URL ? null : await startEmbeddedPostgres();
  process.env.DATABASE_URL ??= database!.url;
  const apps = [await start(), await start()];
  try {
    process.exitCode = (await runStory(apps)) ? 0 : 1;
  } finally {
    for (const app of apps) await app.close();
    await database?.stop();
  }
}

async function start(): Promise<INestApplicationContext> {
  const app = await NestFactory.createApplicationContext(AppModule, { logger: ['error'] });
  app.enableShutdownHooks();
  return app;
}

async function runStory(apps: INestApplicationContext[]): Promise<boolean> {
  const jobs = apps[0]!.get(JobManager);
  const slots: number[] = [];
  for (const app of apps) app.get(JobEvents).on('cron.fired', ({ slot }) => slots.push(slot.getTime()));
  const orders = await jobs.addJobs(
    Array.from({ length: ORDERS }, (_, order) => ({ task: 'fulfil-order', payload: { order }, groupId: 'today' })),
  );
  const books = await jobs.addJob('close-books', {}, { dependsOn: orders.map(({ id }) => id) });
  console.log(`${ORDERS} orders placed; ${(await jobs.explain(books.id)).message}`);
  const closed = await jobs.waitForJob(books.id, { timeoutMs: 60_000 });
  console.log(`The books are closed: ${closed.status}, ${String(closed.result)}`);
  while (slots.length < SLOTS) await new Promise((resolve) => setTimeout(resolve, 100));
  await showOne(jobs, orders[3]!.id);
  return agree(apps, slots);
}

async function showOne(jobs: JobManager, id: string): Promise<void> {
  const history = await jobs.jobHistory(id);
  console.log(`\nOrder 3, progress ${JSON.stringify((await jobs.findJob(id))?.progress)}`);
  for (const { attempt, status, errorMessage } of history)
    console.log(`  attempt ${attempt}: ${errorMessage ?? status}`);
  for (const { message } of (await jobs.jobLogs(id)).items) console.log(`  log: ${message}`);
}

function agree(apps: INestApplicationContext[], slots: number[]): boolean {
  const charges = apps.flatMap((app) => app.get(World).charges);
  const parcels = apps.flatMap((app) => app.get(World).parcels);
  const checks = {
    'every order was charged once': charges.length === ORDERS && new Set(charges).size === ORDERS,
    'every order was shipped once': parcels.length === ORDERS && new Set(parcels).size === ORDERS,
    'every second was counted once': new Set(slots).size === slots.length,
  };
  console.log(`\norders ${ORDERS}, charges ${charges.length}, parcels ${parcels.length}, seconds ${slots.length}`);
  for (const [claim, holds] of Object.entries(checks)) console.log(`${holds ? 'ok  ' : 'FAIL'} ${claim}`);
  return Object.values(checks).every(Boolean);
}

main().catch((error: unknown) => {
  console.error(error);
  process.exitCode = 1;
});
