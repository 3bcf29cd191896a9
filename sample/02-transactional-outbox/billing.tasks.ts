import { Injectable } from '@nestjs/common';
import { IsInt } from 'class-validator';
import { type JobContext, Task } from 'millrace';
import { Order, Payment, Receipt } from './entities.js';

export class ChargeOrder {
  @IsInt()
  orderId!: number;
}

export class SendReceipt {
  @IsInt()
  paymentId!: number;
}

@Injectable()
export class BillingTasks {
  /** Payment, order, receipt job and the end of this job: one transaction. A kill at any moment leaves all or nothing. */
  @Task('charge-order', { transactional: true })
  async charge({ orderId }: ChargeOrder, ctx: JobContext<ChargeOrder>): Promise<{ paymentId: number }> {
    const order = await ctx.manager.findOneByOrFail(Order, { id: orderId });
    const payment = await ctx.manager.save(
      ctx.manager.create(Payment, { orderId, amount: order.total, worker: ctx.workerId }),
    );
    // The moment in which a killed worker would have taken money for an order that looks unpaid.
    await ctx.manager.query('select pg_sleep(0.02)');
    await ctx.manager.update(Order, orderId, { status: 'paid' });
    await ctx.jobs.addJob('send-receipt', { paymentId: payment.id });
    return { paymentId: payment.id };
  }

  @Task('send-receipt', { transactional: true })
  async receipt({ paymentId }: SendReceipt, ctx: JobContext<SendReceipt>): Promise<void> {
    await ctx.manager.insert(Receipt, { paymentId });
  }
}
