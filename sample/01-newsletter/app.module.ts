import { Module } from '@nestjs/common';
import { TypeOrmModule } from '@nestjs/typeorm';
import { JobsModule } from 'millrace';
import { CampaignService } from './campaign.service.js';
import { Mailer } from './mailer.js';
import { MailTasks } from './mail.tasks.js';
import { Subscriber } from './subscriber.entity.js';
import { SubscribersController } from './subscribers.controller.js';

@Module({
  imports: [
    TypeOrmModule.forRootAsync({
      useFactory: () => ({
        type: 'postgres' as const,
        url: process.env.DATABASE_URL,
        entities: [Subscriber],
        synchronize: true,
        poolSize: 20,
      }),
    }),
    // No connection given: the module shares the DataSource above.
    JobsModule.forRoot({
      worker: { concurrency: 20 },
      retry: { baseDelayMs: 500, multiplier: 1.5 },
    }),
  ],
  controllers: [SubscribersController],
  providers: [Mailer, MailTasks, CampaignService],
})
export class AppModule {}
