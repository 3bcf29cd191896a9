// Makes jobs: version 7 ids in strictly growing order, payloads that do not compress unless asked for.
import { randomBytes } from 'node:crypto';

const pool = 256;
const words =
  `queue worker claim settle lease fence attempt history payload priority schedule retry release outcome batch
  commit index row page table vacuum snapshot cursor partition order customer invoice newsletter address`.split(/\s+/);
let lastTime = 0;
let counter = 0;

/** `count` jobs whose payload is a JSON text of `bytes` bytes; `head` holds the other fields as JSON. */
export function makeJobs(count, bytes, text = randomText) {
  const payloads = Array.from({ length: Math.min(count, pool) }, (_, i) => makePayload(i, bytes, text));
  return Array.from({ length: count }, (_, i) => ({
    head: `"id":"${uuidv7()}","priority":0,"max_attempts":25,"task":"mail.send-newsletter"`,
    payload: payloads[i % pool],
  }));
}

function makePayload(userId, bytes, text) {
  const frame = JSON.stringify({ userId, template: 'weekly', text: '' });
  return frame.replace('""', `"${text(bytes - frame.length)}"`);
}

function randomText(length) {
  return randomBytes(length).toString('base64').slice(0, length);
}

/** Words in random order: pglz halves it, as it does with most JSON. */
export function wordyText(length) {
  const word = () => words[Math.floor(Math.random() * words.length)];
  return Array.from({ length }, word).join(' ').slice(0, length);
}

function uuidv7() {
  const time = Date.now();
  counter = time > lastTime ? 0 : counter + 1;
  lastTime = Math.max(time, lastTime) + (counter > 0xfff ? 1 : 0);
  counter &= 0xfff;
  const hex = lastTime.toString(16).padStart(12, '0');
  const tail = randomBytes(8);
  tail[0] = (tail[0] & 0x3f) | 0x80;
  const random = tail.toString('hex');
  const sequence = counter.toString(16).padStart(3, '0');
  return `${hex.slice(0, 8)}-${hex.slice(8)}-7${sequence}-${random.slice(0, 4)}-${random.slice(4)}`;
}
