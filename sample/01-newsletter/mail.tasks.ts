// What the worker pool runs.
import { Injectable } from '@nestjs/common';
import { Type } from 'class-transformer';
import { IsArray, IsEmail, IsString, ValidateNested } from 'class-validator';
import { JobContext, partialSuccess, PermanentFailure, Task } from 'millrace';
import { MailRefused, Mailer } from './mailer.js';

export class Recipient {
  @IsEmail()
  email!: string;

  @IsString()
  name!: string;
}

export class MailBatch {
  @IsArray()
  @ValidateNested({ each: true })
  @Type(() => Recipient)
  recipients!: Recipient[];
}

interface BatchProgress {
  delivered: string[];
  refused: string[];
}

@Injectable()
export class MailTasks {
  constructor(private readonly mailer: Mailer) {}

  @Task('welcome-mail')
  async welcome({ email, name }: Recipient): Promise<void> {
    await this.mailer.send(email, 'Welcome', `Dear ${name}, thank you for signing up.`);
  }

  /** A temporary refusal is thrown and retried with backoff; a final one must not be. */
  @Task('campaign-mail', { maxAttempts: 5 })
  async mail({ email, name }: Recipient): Promise<void> {
    try {
      await this.mailer.send(email, 'News of the month', `Dear ${name}, here is the news.`);
    } catch (error) {
      if (error instanceof MailRefused && error.final) throw new PermanentFailure(error.message, { cause: error });
      throw error;
    }
  }

  /** A batch goes on where its last attempt got to: no recipient is mailed twice because another address failed. */
  @Task('campaign-batch', { payload: MailBatch, maxAttempts: 8 })
  async mailBatch({ recipients }: MailBatch, ctx: JobContext<MailBatch>): Promise<unknown> {
    const { delivered, refused } = (ctx.previous?.results as BatchProgress | undefined) ?? {
      delivered: [],
      refused: [],
    };
    const settled = new Set([...delivered, ...refused]);
    const postponed: string[] = [];
    for (const { email, name } of recipients.filter((recipient) => !settled.has(recipient.email))) {
      try {
        await this.mailer.send(email, 'News for your team', `Dear ${name}, here is the news for your team.`);
        delivered.push(email);
      } catch (error) {
        (error instanceof MailRefused && error.final ? refused : postponed).push(email);
      }
    }
    const results: BatchProgress = { delivered, refused };
    if (postponed.length) return partialSuccess({ completedSteps: delivered, failedSteps: postponed, results });
    return results;
  }
}
