// What is stored and logged of whatever a handler threw: never fails, never holds what PostgreSQL cannot store, and tells
// the reasons that errors carry beside their message.
import { inspect } from 'node:util';

const MAX_MESSAGE = 10_000;
const MAX_STACK = 20_000;
/** Errors inside an error that its message names. */
const MAX_NAMED = 10;
const MAX_DEPTH = 5;
/** Longer values of an error's own properties are no reasons: responses, bodies, statements. */
const MAX_DETAIL = 1_000;
/** Told by their own rules, or by the message. */
const TOLD = new Set(['name', 'message', 'stack', 'cause', 'errors', 'response', 'options', 'driverError']);
/** Clients attach their requests to errors, credentials included. */
const PRIVATE = /config|request|header|auth|passw|secret|token|cookie|credential|api_?key|connection|parameters|query/i;

interface Walk {
  seen: Set<unknown>;
  withDetail: boolean;
}

export interface ErrorText {
  message: string;
  stack: string | null;
}

/** Message and stack of anything at all: errors, strings, undefined, objects with hostile getters, cyclic causes. */
export function serializeError(error: unknown): ErrorText {
  const stack = attempt(() => stackOf(error, new Set(), 0));
  return { message: describe(error, true), stack: stack === undefined ? null : storableText(stack, MAX_STACK) };
}

/** The message for the log: with the reasons inside an error, but without PostgreSQL's details, which show values. */
export const errorMessage = (error: unknown): string => describe(error, false);

function describe(error: unknown, withDetail: boolean): string {
  const walk: Walk = { seen: new Set(), withDetail };
  const message = attempt(() => messageOf(error, walk, 0)) ?? 'unknown error (it could not be described)';
  return storableText(message, MAX_MESSAGE);
}

function messageOf(error: unknown, walk: Walk, depth: number): string {
  walk.seen.add(error);
  const own = ownMessageOf(error);
  if (!isObject(error) || depth === MAX_DEPTH) return own;
  const reasons = [...responseReasons(error), ...innerReasons(error, walk, depth)];
  const told = withoutRepeats(own, reasons);
  const details = withoutRepeats(told, detailsOf(error, walk.withDetail));
  return details === told ? told : `${told} (${details.slice(told.length + 2)})`;
}

function ownMessageOf(error: unknown): string {
  if (error instanceof Error || (isObject(error) && 'message' in error)) {
    const { name, message } = error as { name?: unknown; message?: unknown };
    return `${message as string}` || `${(name ?? 'Error') as string}`;
  }
  if (typeof error === 'string') return error || 'an empty string was thrown';
  return isObject(error) ? JSON.stringify(error) : String(error);
}

/** What a Nest HttpException (of ValidationPipe, say) answers a request with: one message or a list of them. */
function responseReasons(error: object): string[] {
  const { response } = error as { response?: unknown };
  if (typeof (error as { getStatus?: unknown }).getStatus !== 'function') return [];
  if (typeof response === 'string') return [response];
  const { message } = Object(response) as { message?: unknown };
  return [message].flat().filter((line): line is string => typeof line === 'string' && line !== '');
}

/** The errors that an AggregateError gathers. What caused an error stands in its stack. */
function innerReasons(error: object, walk: Walk, depth: number): string[] {
  const { errors } = error as { errors?: unknown };
  const gathered = Array.isArray(errors) && errors.every(isErrorLike) ? errors : [];
  const named = gathered.slice(0, MAX_NAMED);
  const reasons = named.filter((inner) => !walk.seen.has(inner)).map((inner) => messageOf(inner, walk, depth + 1));
  const more = gathered.length - MAX_NAMED;
  return more > 0 ? [...reasons, `and ${more} more`] : reasons;
}

/** The short facts of drivers and of Node: a code, PostgreSQL's detail. The library's own codes say what its messages do. */
function detailsOf(error: object, withDetail: boolean): string[] {
  const { code, detail } = error as { code?: unknown; detail?: unknown };
  const isOwn = typeof code === 'string' && code.startsWith('ERR_JOBS_');
  const told = isOwn ? [] : [code, withDetail ? detail : undefined];
  return told.flatMap((fact) => ((typeof fact === 'string' && fact) || typeof fact === 'number' ? [String(fact)] : []));
}

/** Adds each reason that is not part of what was said before. */
function withoutRepeats(message: string, reasons: string[]): string {
  let told = message;
  for (const reason of reasons) {
    if (!told.includes(reason)) told += `${told === message ? ': ' : '; '}${reason}`;
  }
  return told;
}

function stackOf(error: unknown, seen: Set<unknown>, depth: number): string | undefined {
  seen.add(error);
  const { stack, cause, errors } = Object(error) as { stack?: unknown; cause?: unknown; errors?: unknown };
  if (typeof stack !== 'string') return undefined;
  const gathered = Array.isArray(errors) ? errors.slice(0, MAX_NAMED).map((inner) => ['one of them: ', inner]) : [];
  const inner = [...gathered, ...(cause === undefined || cause === null ? [] : [['caused by: ', cause]])];
  const parts = inner
    .filter(([, one]) => !seen.has(one) && depth < MAX_DEPTH)
    .map(([word, one]) => `\n${word as string}${stackOf(one, seen, depth + 1) ?? ownMessageOf(one)}`);
  return stack + propertiesOf(error as object) + parts.join('');
}

/** An error's own properties, as a debugger shows them, but for what is long or may be secret. */
function propertiesOf(error: object): string {
  const entries = Object.entries(error).filter(
    ([name, value]) => !TOLD.has(name) && !PRIVATE.test(name) && isPlain(value),
  );
  if (!entries.length) return '';
  return `\n${inspect(Object.fromEntries(entries), { depth: 4, breakLength: Infinity, compact: true })}`;
}

function isPlain(value: unknown): boolean {
  if (value === undefined || value === null || typeof value === 'function') return false;
  if (typeof value !== 'object') return inspect(value).length <= MAX_DETAIL;
  const prototype = Object.getPrototypeOf(value) as object | null;
  const isData = Array.isArray(value) || prototype === null || prototype === Object.prototype;
  const text = isData ? JSON.stringify(value) : undefined;
  return text !== undefined && text.length <= MAX_DETAIL && !PRIVATE.test(text);
}

const isObject = (value: unknown): value is object => typeof value === 'object' && value !== null;

const isErrorLike = (value: unknown): boolean => isObject(value) && 'message' in value;

function attempt<T>(describe: () => T): T | undefined {
  try {
    return describe();
  } catch {
    return undefined;
  }
}

/** PostgreSQL's text knows neither NUL nor lone surrogates. */
export const storableText = (text: string, max: number): string =>
  text
    .slice(0, max)
    .replaceAll('\0', '\uFFFD')
    .replace(/\p{Surrogate}/gu, '\uFFFD');
