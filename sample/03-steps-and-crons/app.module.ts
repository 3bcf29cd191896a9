import { Module } from '@nestjs/common';
import { JobsModule } from 'millrace';
import { OrderTasks } from './order.tasks.js';
import { StockTasks } from './stock.tasks.js';
import { World } from './world.js';

@Module({
  imports: [
    JobsModule.forRootAsync({
      useFactory: () => ({ connection: process.env.DATABASE_URL, retry: { baseDelayMs: 300 } }),
    }),
  ],
  providers: [World, OrderTasks, StockTasks],
})
export class AppModule {}
