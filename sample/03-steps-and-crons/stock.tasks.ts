import { Injectable } from '@nestjs/common';
import { type JobContext, Task } from 'millrace';

@Injectable()
export class StockTasks {
  /** Each second, in whatever process: two run this, and each second is counted once. */
  @Task('count-stock', { cron: { schedule: '* * * * * *', timeZone: 'Europe/Berlin', overlap: 'queue' } })
  count(_payload: null, ctx: JobContext): string {
    return ctx.job.tags.join();
  }
}
