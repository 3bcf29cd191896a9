// The smallest whole application, as a user of the published package would write it. Compiled as CommonJS against
// NestJS 11 and as ESM against NestJS 12, and run from an empty folder.
import 'reflect-metadata';
import {
  type CallHandler,
  type ExecutionContext,
  Injectable,
  Module,
  type NestInterceptor,
  Scope,
  UseInterceptors,
} from '@nestjs/common';
import { NestFactory } from '@nestjs/core';
import { TypeOrmModule } from '@nestjs/typeorm';
import { IsEmail } from 'class-validator';
import { JobEvents, JobManager, JobsModule, PayloadValidationError, Task, type JobContext } from 'millrace';
import { startEmbeddedPostgres } from 'millrace/embedded';
import { createJobsTesting } from 'millrace/testing';
import { DataSource } from 'typeorm';

class Mail {
  @IsEmail()
  to!: string;
}

@Injectable()
class Greeter {
  greet(name: string): string {
    return `hello ${name}`;
  }
}

@Injectable()
class Log implements NestInterceptor {
  constructor(private readonly greeter: Greeter) {}

  intercept(context: ExecutionContext, next: CallHandler) {
    console.log(this.greeter.greet(context.getType<string>()));
    return next.handle();
  }
}

@Injectable()
@UseInterceptors(Log)
class MailTasks {
  constructor(private readonly greeter: Greeter) {}

  @Task('mail')
  send(mail: Mail, ctx: JobContext<Mail>): string {
    return `${this.greeter.greet(mail.to)} ${mail instanceof Mail} ${ctx.attempt}`;
  }
}

@Injectable({ scope: Scope.REQUEST })
class ScopedTasks {
  @Task('scoped')
  run(payload: number): number {
    return payload + 1;
  }
}

async function main(): Promise<void> {
  const postgres = await startEmbeddedPostgres();

  @Module({
    imports: [TypeOrmModule.forRoot({ type: 'postgres', url: postgres.url, retryAttempts: 0 }), JobsModule.forRoot()],
    providers: [Greeter, Log, MailTasks, ScopedTasks],
  })
  class AppModule {}

  const app = await NestFactory.createApplicationContext(AppModule, { logger: ['warn', 'error'], abortOnError: false });
  app.enableShutdownHooks();
  const jobs = app.get(JobManager);
  const refused = await jobs.addJob('mail', { to: 'nobody' }).catch((error: unknown) => error);
  if (!(refused instanceof PayloadValidationError)) throw new Error(`Expected a refusal, got ${String(refused)}`);

  let completed = 0;
  const done = new Promise<void>((resolve) => {
    app.get(JobEvents).on('job.completed', () => ++completed === 2 && resolve());
  });
  const id = await app.get(DataSource).transaction(async (manager) => {
    await jobs.addJob('scoped', 1, { manager });
    return (await jobs.addJob('mail', { to: 'ada@example.org' }, { manager })).id;
  });
  await done;
  const [record] = await jobs.jobHistory(id);
  if (record?.result !== 'hello ada@example.org true 1') throw new Error(`Unexpected result ${JSON.stringify(record)}`);
  await app.close();
  await tryTesting(postgres.url);
  await postgres.stop();
  console.log('the packed package works');
}

async function tryTesting(connection: string): Promise<void> {
  @Module({
    imports: [JobsModule.forRoot({ connection, worker: { autoStart: false } })],
    providers: [Greeter, Log, MailTasks],
  })
  class TestedModule {}

  const app = await NestFactory.createApplicationContext(TestedModule, { logger: ['error'], abortOnError: false });
  const testing = createJobsTesting(app);
  testing.inline();
  await app.get(JobManager).addJob('mail', { to: 'bob@example.org' });
  const [ran] = testing.ran;
  if (ran?.result !== 'hello bob@example.org true 1') throw new Error(`Unexpected attempt ${JSON.stringify(ran)}`);
  await app.close();
}

main().catch((error: unknown) => {
  console.error(error);
  process.exit(1);
});
