// Pauses in words: for the log, for explanations and for specs.
import type { PauseDetails, PauseTarget } from '../interfaces/report.interface.js';

/** What is paused: `task "charge-card"`. */
export function nameTarget(target: PauseTarget): string {
  if ('all' in target) return 'everything';
  if ('partition' in target) return `partition "${target.partition.partition}" of queue "${target.partition.queue}"`;
  const [[kind, name]] = Object.entries(target) as [[string, string]];
  return `${kind} "${name}"`;
}

/** Until when, by which name and why, as far as that is known; begins with a space, and has no full stop. */
export function describePause({ until, by, reason }: Pick<PauseDetails, 'until' | 'by' | 'reason'>): string {
  const when = until ? ` until ${until.toISOString()}` : '';
  return `${when}${by === null ? '' : ` by ${by}`}${reason === null ? '' : `: ${reason}`}`;
}
