// What a bundler gets: runs one job to its end.
import 'reflect-metadata';
import { NestFactory } from '@nestjs/core';
import { JobManager } from 'millrace';
import { MailModule } from './mail.module';

async function main(): Promise<void> {
  const app = await NestFactory.createApplicationContext(MailModule, {
    logger: ['warn', 'error'],
    abortOnError: false,
  });
  app.enableShutdownHooks();
  const jobs = app.get(JobManager);
  const { id } = await jobs.addJob('send-mail', { to: 'ada@example.org' });
  const { status, result } = await jobs.waitForJob(id, { timeoutMs: 20_000 });
  console.log(status, result);
  await app.close();
}

main().catch((error: unknown) => {
  console.error((error as { code?: string }).code, (error as Error).message);
  process.exitCode = 1;
});
