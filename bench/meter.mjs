// What a run took from the database server: processor time, and bytes of write-ahead log.
import fs from 'node:fs';

const TICK_MICROS = 10_000; // USER_HZ is 100 on Linux, whatever the kernel's own tick

export class Meter {
  #from;

  /** `pid`: the server's first process. `client`: a session of PostgreSQL, or null. */
  constructor(pid, client) {
    this.pid = pid;
    this.client = client;
  }

  async start() {
    this.#from = await this.#read();
  }

  /** Since `start`: µs of CPU; bytes of WAL, or null where there is none. */
  async read() {
    const { cpu, wal } = await this.#read();
    return { cpu: cpu - this.#from.cpu, wal: wal === null ? null : wal - this.#from.wal };
  }

  async #read() {
    return { wal: await this.#wal(), cpu: serverCpu(this.pid) };
  }

  async #wal() {
    if (this.client === null) return null;
    const { rows } = await this.client.query(`select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0') as bytes`);
    return Number(rows[0].bytes);
  }
}

/** The living processes by the scheduler's clock, and the ended ones as their parent was told. */
function serverCpu(pid) {
  try {
    const children = fs.readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').split(' ').filter(Boolean);
    return [pid, ...children].reduce((sum, one) => sum + ownCpu(one), endedCpu(pid));
  } catch {
    return NaN; // no /proc here
  }
}

function ownCpu(pid) {
  try {
    const tasks = fs.readdirSync(`/proc/${pid}/task`);
    const nanos = tasks.map((task) => fs.readFileSync(`/proc/${pid}/task/${task}/schedstat`, 'utf8').split(' ')[0]);
    return nanos.reduce((sum, one) => sum + Number(one), 0) / 1_000;
  } catch {
    return 0; // ended meanwhile
  }
}

function endedCpu(pid) {
  const stat = fs.readFileSync(`/proc/${pid}/stat`, 'utf8');
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return (Number(fields[13]) + Number(fields[14])) * TICK_MICROS;
}
