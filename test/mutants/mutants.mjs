// What guards against each kind of fault, and how to take it out. `edits`: a text that is in the file exactly once, and what
// to put in its place: the smallest removal. `checks`: the specs that are to find it, the first one first. `says`: the
// error of PostgreSQL by which they find it, where it is no assertion.
import { CLAIMS } from './claims.mjs';
import { FLOWS } from './flow.mjs';
import { LIFE } from './life.mjs';
import { READINESS } from './readiness.mjs';
import { STRANGERS } from './strangers.mjs';
import { TOKENS_OF_LIMITS } from './tokens.mjs';

export const MUTANTS = [...CLAIMS, ...READINESS, ...STRANGERS, ...LIFE, ...FLOWS, ...TOKENS_OF_LIMITS];
