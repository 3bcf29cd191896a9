import { Injectable } from '@nestjs/common';
import { JobManager } from 'millrace';
import { DataSource } from 'typeorm';
import { Order } from './entities.js';

@Injectable()
export class OrdersService {
  constructor(
    private readonly dataSource: DataSource,
    private readonly jobs: JobManager,
  ) {}

  /** The order and the job that charges it are committed together: no outbox table, no relay, no order that is forgotten. */
  async place(customer: string, total: number): Promise<Order> {
    return this.dataSource.transaction(async (manager) => {
      const order = await manager.save(manager.create(Order, { customer, total }));
      await this.jobs.addJob('charge-order', { orderId: order.id }, { manager });
      return order;
    });
  }
}
