import { Module, type DynamicModule } from '@nestjs/common';
import { TypeOrmModule } from '@nestjs/typeorm';
import { JobsModule } from 'millrace';
import { BillingTasks } from './billing.tasks.js';
import { Order, Payment, Receipt } from './entities.js';
import { OrdersService } from './orders.service.js';

const WORKER = {
  concurrency: 6,
  // Two seconds instead of thirty, so that the story need not wait for long after each kill.
  leaseMs: 2_000,
  keepaliveMs: 500,
  pollIntervalMs: 250,
  // It is the story that kills the workers, not their jobs: none is a suspect.
  maxCrashes: 1_000,
};

@Module({})
export class AppModule {
  /** The shop takes orders and runs no jobs; workers run jobs and take no orders. */
  static as(role: 'shop' | 'worker'): DynamicModule {
    return {
      module: AppModule,
      imports: [
        TypeOrmModule.forRoot({
          type: 'postgres',
          url: process.env.DATABASE_URL,
          entities: [Order, Payment, Receipt],
          synchronize: role === 'shop',
          poolSize: 10,
        }),
        JobsModule.forRoot({
          worker: role === 'worker' && WORKER,
        }),
      ],
      providers: [OrdersService, BillingTasks],
    };
  }
}
