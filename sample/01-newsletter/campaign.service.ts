// Turns a file of recipients into jobs: single mails for most, batches for teams, each in the queue of its mail
// domain (one mail at a time per domain, as their servers like it), all under one rate limit.
import { createReadStream } from 'node:fs';
import { Injectable } from '@nestjs/common';
import { parse } from 'csv-parse';
import { JobManager, type JobSpec } from 'millrace';
import type { Recipient } from './mail.tasks.js';

interface Row extends Recipient {
  plan: string;
}

export interface Campaign {
  recipients: number;
  jobIds: string[];
}

const BATCH = 10;
const PER_STATEMENT = 1_000;
const RATE_LIMIT = 'smtp';

@Injectable()
export class CampaignService {
  constructor(private readonly jobs: JobManager) {}

  async launch(file: string): Promise<Campaign> {
    await this.jobs.registerRateLimit(RATE_LIMIT, 150, '250 milliseconds');
    const rows = await readRows(file);
    const specs = [
      ...rows.filter(({ plan }) => plan !== 'team').map(single),
      ...byDomain(rows.filter(({ plan }) => plan === 'team')).map(batch),
    ];
    const jobIds: string[] = [];
    for (let start = 0; start < specs.length; start += PER_STATEMENT) {
      const added = await this.jobs.addJobs(specs.slice(start, start + PER_STATEMENT));
      jobIds.push(...added.map(({ id }) => id));
    }
    return { recipients: rows.length, jobIds };
  }
}

async function readRows(file: string): Promise<Row[]> {
  const rows: Row[] = [];
  const records = createReadStream(file).pipe(parse({ columns: true, trim: true, skip_empty_lines: true }));
  for await (const row of records) rows.push(row as Row);
  return rows;
}

const single = ({ email, name }: Row): JobSpec<Recipient> => ({
  task: 'campaign-mail',
  payload: { email, name },
  queue: domainOf(email),
  rateLimitKey: RATE_LIMIT,
  tags: ['campaign'],
});

const batch = (recipients: Recipient[]): JobSpec => ({
  task: 'campaign-batch',
  payload: { recipients },
  queue: domainOf(recipients[0]!.email),
  rateLimitKey: RATE_LIMIT,
  tags: ['campaign'],
});

/** Batches of at most ten recipients of one domain. */
function byDomain(rows: Row[]): Recipient[][] {
  const open = new Map<string, Recipient[]>();
  const batches: Recipient[][] = [];
  for (const { email, name } of rows) {
    const domain = domainOf(email);
    let recipients = open.get(domain);
    if (!recipients || recipients.length === BATCH) {
      recipients = [];
      open.set(domain, recipients);
      batches.push(recipients);
    }
    recipients.push({ email, name });
  }
  return batches;
}

const domainOf = (email: string): string => email.slice(email.indexOf('@') + 1);
