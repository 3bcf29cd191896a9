// The whole story in one command: a database, a mail server, an application, a campaign, and a table that must agree.
import 'reflect-metadata';
import { fileURLToPath } from 'node:url';
import { ValidationPipe, type INestApplication } from '@nestjs/common';
import { NestFactory } from '@nestjs/core';
import { JobEvents, JobManager } from 'millrace';
import { startEmbeddedPostgres } from 'millrace/embedded';
import { CampaignService } from './campaign.service.js';
import { MailServer } from './mail.server.js';
import { printTable, showProgress, tallyOf } from './progress.js';

const SIGN_UPS = [
  { email: 'ada@analytical.example', name: 'Ada' },
  { email: 'grace@compilers.example', name: 'Grace' },
  { email: 'ada@analytical.example', name: 'Ada again' }, // 409, and no second mail
  { email: 'not an address', name: 'Nobody' }, // 400
];
const STORY_TIMEOUT_MS = 120_000;

const args = process.argv.slice(2);
const serve = args.includes('--serve');
// Compiled to dist-sample/01-newsletter; the file stays with the sources.
const defaultFile = fileURLToPath(new URL('../../sample/01-newsletter/recipients.csv', import.meta.url));
const file = args.find((argument) => !argument.startsWith('--')) ?? defaultFile;

async function main(): Promise<void> {
  const database = process.env.DATABASE_URL ? null : await startEmbeddedPostgres();
  process.env.DATABASE_URL ??= database!.url;
  const mail = new MailServer();
  process.env.SMTP_PORT = String(await mail.listen());
  const { AppModule } = await import('./app.module.js');
  const app = await NestFactory.create(AppModule, { logger: ['error'] });
  app.useGlobalPipes(new ValidationPipe());
  app.enableShutdownHooks();
  const close = async (): Promise<void> => {
    await app.close();
    await mail.close();
    await database?.stop();
  };
  try {
    await listen(app);
    process.exitCode = (await runStory(app, mail)) ? 0 : 1;
  } catch (error) {
    await close();
    throw error;
  }
  if (!serve) return close();
  console.log(`\nServing ${await app.getUrl()}/subscribers; stop with Ctrl-C.`);
}

async function listen(app: INestApplication): Promise<void> {
  const port = serve ? Number(process.env.PORT ?? 3000) : 0;
  try {
    await app.listen(port, '127.0.0.1');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EADDRINUSE') throw error;
    throw new Error(`Port ${port} is taken. Choose another one: PORT=3001 npm start -- --serve`, { cause: error });
  }
}

async function runStory(app: INestApplication, mail: MailServer): Promise<boolean> {
  const answers = await signUp(await app.getUrl());
  console.log(`Sign-ups: ${answers.join(', ')}`);
  const tally = tallyOf(app.get(JobEvents));
  const startedAt = performance.now();
  const campaign = await app.get(CampaignService).launch(file);
  const enqueueMs = performance.now() - startedAt;
  console.log(
    `Enqueued ${campaign.jobIds.length} jobs for ${campaign.recipients} recipients in ${Math.round(enqueueMs)} ms`,
  );
  const stop = showProgress(tally, campaign.jobIds.length);
  await settled(app.get(JobManager)).finally(stop);
  const seconds = (performance.now() - startedAt) / 1_000;

  const counts = (await app.get(JobManager).counts()).byStatus;
  const delivered = [...mail.delivered.values()].reduce((sum, times) => sum + times, 0);
  const welcomed = answers.filter((status) => status === 201).length;
  printTable({
    enqueued: campaign.jobIds.length + welcomed,
    recipients: campaign.recipients + welcomed,
    delivered,
    'refused for good': mail.refusedForGood.size,
    retried: tally.retried,
    exhausted: counts.exhausted,
    'jobs per second': Math.round(campaign.jobIds.length / seconds),
    seconds: seconds.toFixed(1),
  });
  return agree({
    'every recipient was delivered to or refused':
      delivered + mail.refusedForGood.size === campaign.recipients + welcomed,
    'no recipient was mailed twice': [...mail.delivered.values()].every((times) => times === 1),
    'every job completed or was exhausted': counts.completed + counts.exhausted === campaign.jobIds.length + welcomed,
    'one sign-up was refused as a duplicate, one as invalid': answers.join() === '201,201,409,400',
  });
}

/** The status codes of the sign-ups, one after the other. */
async function signUp(url: string): Promise<number[]> {
  const statuses: number[] = [];
  for (const body of SIGN_UPS) {
    const headers = { 'content-type': 'application/json' };
    const response = await fetch(`${url}/subscribers`, { method: 'POST', headers, body: JSON.stringify(body) });
    statuses.push(response.status);
  }
  return statuses;
}

/** Resolves when no job is waiting or running any more. */
async function settled(jobs: JobManager): Promise<void> {
  const deadline = Date.now() + STORY_TIMEOUT_MS;
  for (;;) {
    const { available, scheduled, running, blocked } = (await jobs.counts()).byStatus;
    if (available + scheduled + running + blocked === 0) return;
    if (Date.now() > deadline) throw new Error(`Expected all jobs to be settled within ${STORY_TIMEOUT_MS / 1_000} s.`);
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
}

function agree(checks: Record<string, boolean>): boolean {
  for (const [claim, holds] of Object.entries(checks)) console.log(`${holds ? 'ok  ' : 'FAIL'} ${claim}`);
  return Object.values(checks).every(Boolean);
}

main().catch((error: unknown) => {
  console.error(error);
  process.exitCode = 1;
});
