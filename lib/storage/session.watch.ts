// What goes over one connection beside the answers: which statement failed, what a COMMIT was answered with.
import type { EventEmitter } from 'node:events';
import type pg from 'pg';
import { TransactionOverError } from '../jobs.errors.js';

/** Of pg's client; a driver without it only tells less. */
interface Internals {
  connection?: Partial<EventEmitter> & { parsedStatements?: object };
}

export class SessionWatch {
  /** Why the connection is gone. */
  lostTo: Error | null = null;
  lastEnd: string | null = null;
  /** Whether the driver takes statements for prepared that are not. */
  hasLostStatements = false;
  isBusy = false;
  private lastError: Error | null = null;
  private readonly connection: Internals['connection'];

  constructor(private readonly client: pg.ClientBase) {
    this.connection = (client as Internals).connection;
    client.on('error', this.onLost);
    this.connection?.on?.('errorMessage', this.onError);
    this.connection?.on?.('commandComplete', this.onCommand);
    this.connection?.on?.('readyForQuery', this.onReady);
  }

  end(): void {
    this.client.off('error', this.onLost);
    this.connection?.off?.('errorMessage', this.onError);
    this.connection?.off?.('commandComplete', this.onCommand);
    this.connection?.off?.('readyForQuery', this.onReady);
  }

  /** The driver prepares them again. */
  forgetLostStatements(): void {
    if (this.hasLostStatements && this.connection?.parsedStatements) this.connection.parsedStatements = {};
  }

  /** Says which error has aborted the transaction: PostgreSQL tells it only once, and the handler may have caught it. */
  explain(error: unknown): unknown {
    const { lastError } = this;
    const isAftermath = (error as { code?: unknown } | null)?.code === '25P02' || error instanceof TransactionOverError;
    if (!isAftermath || !lastError) return error;
    return new TransactionOverError(
      `Expected a healthy transaction when the handler has returned, got one that an earlier error has aborted: ` +
        lastError.message,
      { cause: lastError },
    );
  }

  private readonly onLost = (error: Error): void => void (this.lostTo ??= error);
  private readonly onError = (error: Error & { code?: string }): void => {
    if (error.code !== '25P02') this.lastError = error;
  };
  private readonly onCommand = ({ text }: { text: string }): void => {
    if (text === 'COMMIT' || text === 'ROLLBACK') this.lastEnd = text;
    if (text === 'DEALLOCATE ALL' || text === 'DISCARD ALL') this.hasLostStatements = true;
  };
  private readonly onReady = ({ status }: { status: string }): void => {
    this.isBusy = status !== 'I';
  };
}
