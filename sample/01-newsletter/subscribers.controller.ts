// Signing up: the subscriber and the job for the welcome mail are one transaction.
import { Body, ConflictException, Controller, Post } from '@nestjs/common';
import { IsEmail, IsNotEmpty, IsString } from 'class-validator';
import { JobManager } from 'millrace';
import { DataSource, QueryFailedError } from 'typeorm';
import { Subscriber } from './subscriber.entity.js';

class SignUpDto {
  @IsEmail()
  email!: string;

  @IsString()
  @IsNotEmpty()
  name!: string;
}

@Controller('subscribers')
export class SubscribersController {
  constructor(
    private readonly dataSource: DataSource,
    private readonly jobs: JobManager,
  ) {}

  @Post()
  async signUp(@Body() { email, name }: SignUpDto): Promise<{ id: number; jobId: string }> {
    try {
      return await this.dataSource.transaction(async (manager) => {
        // Enqueued first on purpose: if the address is taken, the job vanishes with the transaction.
        const job = await this.jobs.addJob('welcome-mail', { email, name }, { manager });
        const subscriber = await manager.save(Subscriber, { email, name });
        return { id: subscriber.id, jobId: job.id };
      });
    } catch (error) {
      if (error instanceof QueryFailedError) throw new ConflictException(`${email} has already signed up`);
      throw error;
    }
  }
}
