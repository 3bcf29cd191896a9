// What is said of queues and their partitions: what it may be, and how it is stored.
import type { PartitionOptions, QueueOptions, QueueSettings } from '../interfaces/jobs-options.interface.js';
import { ifGiven, option, section, type Rule } from '../validation.js';
import { rules } from '../validation.rules.js';

const MAX_WEIGHT = 1_000;

const given = (rule: Rule) => option<any>(rule, undefined);

const PARTITION = {
  concurrency: given(rules.concurrency),
  share: given(rules.share),
  weight: given(rules.integer(1, MAX_WEIGHT)),
};

/** The `partition` of a task. */
export const partitionOrFunction: Rule = (value) => {
  const expected = typeof value === 'function' ? null : rules.partition(value);
  return expected && `${expected}, or a function of the payload`;
};

/** What configurePartition sets. */
export const partitionOptions = section(PARTITION);

/** What is said of a queue, wherever it is declared or configured. */
export const queueOptions = section({
  concurrency: given(rules.concurrency),
  partitions: ifGiven(partitionOptions),
  maxWaiting: given(rules.concurrency),
});

const limitOf = (concurrency: number | undefined): number | undefined =>
  concurrency === Infinity ? undefined : concurrency;

/** As it is stored. */
export function queueSettings({ concurrency, partitions, maxWaiting }: QueueOptions): QueueSettings {
  return {
    concurrency: limitOf(concurrency ?? (partitions ? Infinity : 1)) ?? null,
    partitions: partitionSettings(partitions),
    maxWaiting: limitOf(maxWaiting) ?? null,
  };
}

/** What is not the default. */
export function partitionSettings(partitions: PartitionOptions = {}): QueueSettings['partitions'] {
  const { concurrency, share = 1, weight = 1 } = partitions;
  const limit = limitOf(concurrency);
  return {
    ...(limit !== undefined && { concurrency: limit }),
    ...(share !== 1 && { share }),
    ...(weight !== 1 && { weight }),
  };
}
