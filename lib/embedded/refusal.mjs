// @ts-check
/** Why PostgreSQL cannot be started; the parent makes an EmbeddedPostgresError of it. */
export class Refusal extends Error {
  /**
   * @param {string} reason one of EmbeddedPostgresError's reasons
   * @param {string} message what was expected, what was got, what to do
   */
  constructor(reason, message) {
    super(message);
    this.reason = reason;
  }
}
