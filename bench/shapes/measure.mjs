// Rates, WAL and processor time of one phase of a cell.
import fs from 'node:fs';

/** Runs `work` and says what it took; `jobs` makes the figures per job. */
export async function measure(admin, backends, jobs, work) {
  const from = await walPosition(admin);
  const cpu = cpuMicros(backends);
  const client = process.cpuUsage();
  const start = performance.now();
  await work();
  const ms = performance.now() - start;
  const { user, system } = process.cpuUsage(client);
  return {
    rate: (jobs / ms) * 1000,
    cpu: (cpuMicros(backends) - cpu) / jobs,
    clientCpu: (user + system) / jobs,
    ...(await walSince(admin, from, jobs)),
  };
}

async function walPosition(admin) {
  const { rows } = await admin.query('select pg_current_wal_insert_lsn() as lsn');
  return rows[0].lsn;
}

async function walSince(admin, from, jobs) {
  await admin.query(`select pg_logical_emit_message(false, 'shapes', 'flush', true)`); // what is not flushed is not read
  const { rows } = await admin.query(
    `select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), $1)::float8 as bytes, sum(fpi_size)::float8 as images,
       sum(count) filter (where "resource_manager/record_type" like 'Heap/UPDATE%')::float8 as updates,
       sum(count) filter (where "resource_manager/record_type" like 'Heap/HOT_UPDATE%')::float8 as hot
     from pg_get_wal_stats($1, pg_current_wal_insert_lsn(), true)`,
    [from],
  );
  const { bytes, images, updates, hot } = rows[0];
  const all = Number(updates) + Number(hot);
  return { wal: bytes / jobs, walImages: images / jobs, hotShare: all ? hot / all : 0 };
}

/** Time on a processor, to the nanosecond where the kernel tells (`schedstat`). */
function cpuMicros(pids) {
  const read = (pid) => Number(fs.readFileSync(`/proc/${pid}/schedstat`, 'utf8').split(' ')[0]) / 1000;
  return pids.reduce((sum, pid) => sum + read(pid), 0);
}

/** Bytes of tables with their indexes, TOAST and partitions. */
export async function sizeOf(admin, tables) {
  const { rows } = await admin.query(
    `select sum(pg_total_relation_size(relation))::float8 as bytes
     from (
       select name::regclass from unnest($1::text[]) as root(name)
       union
       select relid from unnest($1::text[]) as root(name), pg_partition_tree(name::regclass)
     ) as tree(relation)`,
    [tables],
  );
  return Number(rows[0].bytes);
}
