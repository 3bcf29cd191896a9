// What becomes of a process under whose feet a newer release has changed the schema: it claims and tidies up no more,
// instead of guessing what its statements mean now.
import { SchemaTooNewError } from '../jobs.errors.js';
import { tooNew } from '../storage/schema.version.js';

export class SchemaCheck {
  /** Null while this release can work with the schema. Never taken back: a process goes on by being started again. */
  refusal: SchemaTooNewError | null = null;

  constructor(private readonly schema: string) {}

  /** The version that registrations and heartbeats bring: null where there is nothing to fear. */
  learn(newerSchema: number | null): void {
    if (newerSchema !== null) this.refusal ??= new SchemaTooNewError(tooNew(this.schema, newerSchema));
  }

  /** @throws SchemaTooNewError */
  assertKnown(): void {
    if (this.refusal) throw this.refusal;
  }
}
