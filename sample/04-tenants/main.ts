// A thousand tenants share one queue; one of them asks for thousands of pages at once. The others do not wait for it.
import 'reflect-metadata';
import { setTimeout as sleep } from 'node:timers/promises';
import { NestFactory } from '@nestjs/core';
import { JobManager } from 'millrace';
import { startEmbeddedPostgres } from 'millrace/embedded';
import { AppModule } from './app.module.js';
import type { Page } from './render.tasks.js';
import { showTable, shown } from './table.js';
import { NOISY, Waits } from './waits.js';

const TENANTS = 1_000;
const NOISY_PAGES = 3_000;

async function main(): Promise<void> {
  const interrupted = new AbortController();
  process.once('SIGINT', () => interrupted.abort());
  const database = process.env.DATABASE_URL ? null : await startEmbeddedPostgres();
  process.env.DATABASE_URL ??= database!.url;
  const app = await NestFactory.createApplicationContext(AppModule, { logger: ['error'] });
  try {
    process.exitCode = (await runStory(app.get(JobManager), app.get(Waits), interrupted.signal)) ? 0 : 1;
  } finally {
    await app.close();
    await database?.stop();
  }
}

async function runStory(jobs: JobManager, waits: Waits, interrupted: AbortSignal): Promise<boolean> {
  const ask = async (tenants: string[]): Promise<void> => {
    const pages: Page[] = tenants.map((tenant) => ({ tenant, askedAt: Date.now() }));
    for (const tenant of tenants) waits.of(tenant).asked++;
    await jobs.addJobs(pages.map((payload) => ({ task: 'render-page', payload })));
  };
  console.log(`${TENANTS} tenants share a queue that renders 20 pages at once. ${NOISY} wants ${NOISY_PAGES} of them.`);
  await ask(Array.from({ length: NOISY_PAGES }, () => NOISY));
  const stop = showTable(waits, TENANTS);
  // Of the others, one wants a page now and then, as long as pages of the noisy one wait.
  while (waits.noisy.waiting > 0 && !interrupted.aborted) {
    await ask([`tenant-${1 + Math.floor(Math.random() * (TENANTS - 1))}`]);
    await sleep(10);
  }
  while (waits.others.waiting > 0 && !interrupted.aborted) await sleep(10);
  stop();
  if (!interrupted.aborted) return agree(waits);
  console.log('\nStopped; pages that wait stay in the queue.');
  return true;
}

function agree({ noisy, others }: Waits): boolean {
  const wait = shown(others.quantile(0.99));
  const checks = {
    'every page was rendered once': noisy.waiting === 0 && others.waiting === 0,
    [`99 of 100 pages of the others waited for at most ${wait}`]: others.quantile(0.99) < noisy.quantile(0.5),
  };
  console.log();
  for (const [claim, holds] of Object.entries(checks)) console.log(`${holds ? 'ok  ' : 'FAIL'} ${claim}`);
  return Object.values(checks).every(Boolean);
}

main().catch((error: unknown) => {
  console.error(error);
  process.exitCode = 1;
});
