// Tells whether two things are the same without keeping them.
import { createHash } from 'node:crypto';

/** The same for what has the same JSON; nothing can be read back from it. */
export const digestOf = (value: unknown): string =>
  createHash('sha256').update(JSON.stringify(value)).digest('base64url');
