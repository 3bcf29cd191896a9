// The application of the recipes: a task with a DTO, on the database that DATABASE_URL names.
import { Injectable, Module } from '@nestjs/common';
import { IsEmail } from 'class-validator';
import { JobsModule, Task } from 'millrace';

export class Mail {
  @IsEmail()
  to!: string;
}

@Injectable()
export class MailTasks {
  @Task('send-mail', { payload: Mail })
  send(mail: Mail): string {
    return `sent to ${mail.to}`;
  }
}

@Module({
  imports: [
    JobsModule.forRootAsync({
      useFactory: () => ({
        connection: process.env.DATABASE_URL!,
        worker: { autoStart: process.env.NODE_ENV !== 'test' },
      }),
    }),
  ],
  providers: [MailTasks],
})
export class MailModule {}
