// What is stored of whatever a handler threw: never fails, never stores what PostgreSQL cannot.

const MAX_MESSAGE = 10_000;
const MAX_STACK = 20_000;

export interface ErrorText {
  message: string;
  stack: string | null;
}

/** Message and stack of anything at all: errors, strings, undefined, objects with hostile getters, cyclic causes. */
export function errorText(error: unknown): ErrorText {
  const message = attempt(() => messageOf(error)) ?? 'unknown error (it could not be described)';
  const stack = attempt(() => stackOf(error));
  return { message: storable(message, MAX_MESSAGE), stack: stack === undefined ? null : storable(stack, MAX_STACK) };
}

function messageOf(error: unknown): string {
  if (error instanceof Error || (typeof error === 'object' && error !== null && 'message' in error)) {
    const { name, message } = error as { name?: unknown; message?: unknown };
    return `${message as string}` || `${(name ?? 'Error') as string}`;
  }
  if (typeof error === 'string') return error || 'an empty string was thrown';
  if (typeof error === 'object' && error !== null) return JSON.stringify(error);
  return String(error);
}

function stackOf(error: unknown): string | undefined {
  const { stack } = Object(error) as { stack?: unknown };
  if (typeof stack !== 'string') return undefined;
  return stack + causesOf(error, new Set([error]));
}

function causesOf(error: unknown, seen: Set<unknown>): string {
  const { cause } = Object(error) as { cause?: unknown };
  if (cause === undefined || cause === null || seen.has(cause)) return '';
  seen.add(cause);
  const { stack } = Object(cause) as { stack?: unknown };
  return `\ncaused by: ${typeof stack === 'string' ? stack : messageOf(cause)}${causesOf(cause, seen)}`;
}

function attempt<T>(describe: () => T): T | undefined {
  try {
    return describe();
  } catch {
    return undefined;
  }
}

/** PostgreSQL's text knows neither NUL nor lone surrogates. */
export const storable = (text: string, max: number): string =>
  text
    .slice(0, max)
    .replaceAll('\0', '\uFFFD')
    .replace(/\p{Surrogate}/gu, '\uFFFD');
