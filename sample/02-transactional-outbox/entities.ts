import { Column, Entity, PrimaryGeneratedColumn } from 'typeorm';

@Entity('orders')
export class Order {
  @PrimaryGeneratedColumn()
  id!: number;

  @Column({ type: 'text' })
  customer!: string;

  /** In cents. */
  @Column({ type: 'int' })
  total!: number;

  @Column({ type: 'text', default: 'placed' })
  status!: 'placed' | 'paid';
}

/** Deliberately without a unique constraint on the order: nothing but the queue keeps a customer from paying twice. */
@Entity('payments')
export class Payment {
  @PrimaryGeneratedColumn()
  id!: number;

  @Column({ type: 'int' })
  orderId!: number;

  @Column({ type: 'int' })
  amount!: number;

  /** Which worker took the money. */
  @Column({ type: 'text' })
  worker!: string;
}

@Entity('receipts')
export class Receipt {
  @PrimaryGeneratedColumn()
  id!: number;

  @Column({ type: 'int' })
  paymentId!: number;
}
