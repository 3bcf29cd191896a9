// What a pause is about, as callers name it and as the database does.
import type { PauseTarget } from '../interfaces/report.interface.js';
import { faultOf, isRecord, option, refuseCall, required, section, show } from '../validation.js';
import { rules } from '../validation.rules.js';

export interface TargetKey {
  kind: 'all' | 'instance' | 'partition' | 'queue' | 'task' | 'worker';
  name: string;
  partition: string;
}

const optional = (rule: typeof rules.name) => option<any>(rule, undefined);

const partition = section({ queue: required(rules.laneName), partition: required(rules.laneName) });

const target = section({
  task: optional(rules.name),
  queue: optional(rules.laneName),
  partition: { ...partition, check: (value, path) => (value === undefined ? [] : partition.check(value, path)) },
  instance: optional(rules.name),
  worker: optional(rules.name),
  all: optional((value) => (value === true ? null : 'true')),
});

const ONE = 'one of task, queue, partition, instance, worker and all';

/** @throws InvalidArgumentError unless it names exactly one target */
export function readTarget(value: PauseTarget): TargetKey {
  if (!isRecord(value)) refuseCall(faultOf('the target', value, () => `an object with ${ONE}`));
  refuseCall(target.check(value, ''));
  const given = Object.entries(value).filter(([, named]) => named !== undefined);
  if (given.length !== 1)
    refuseCall([`Expected ${ONE}, got ${given.length ? given.map(([kind]) => kind).join(' and ') : show(value)}.`]);
  const [[kind, named]] = given as [[TargetKey['kind'], any]];
  if (kind === 'all') return { kind, name: '', partition: '' };
  if (kind === 'partition') return { kind, name: named.queue, partition: named.partition };
  return { kind, name: named, partition: '' };
}
