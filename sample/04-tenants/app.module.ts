import { Module } from '@nestjs/common';
import { JobsModule } from 'millrace';
import { RenderTasks } from './render.tasks.js';
import { Waits } from './waits.js';

@Module({
  imports: [
    JobsModule.forRootAsync({
      useFactory: () => ({
        connection: process.env.DATABASE_URL,
        worker: { concurrency: 20 },
        // Twenty pages at once, of one tenant at most ten while others want some.
        queues: { render: { concurrency: 20, partitions: { share: 0.5 } } },
      }),
    }),
  ],
  providers: [Waits, RenderTasks],
})
export class AppModule {}
