import { setTimeout as sleep } from 'node:timers/promises';
import { Injectable } from '@nestjs/common';
import { Task } from 'millrace';
import { Waits } from './waits.js';

export interface Page {
  tenant: string;
  askedAt: number;
}

@Injectable()
export class RenderTasks {
  constructor(private readonly waits: Waits) {}

  /** Tenants take turns: a job says whose it is, and that is all. */
  @Task('render-page', { queue: 'render', partition: ({ tenant }: Page) => tenant })
  async render({ tenant, askedAt }: Page): Promise<void> {
    this.waits.of(tenant).waits.push(Date.now() - askedAt);
    await sleep(20);
  }
}
