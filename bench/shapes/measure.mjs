// Rate, WAL and processor time of one phase of a cell, and the size of what it leaves.
import fs from 'node:fs';

/** Runs `work`, which resolves to the number of jobs it did, and says what one of them took. */
export async function measure(admin, backends, work) {
  const from = await walPosition(admin);
  const before = cpuMicros(backends);
  const start = performance.now();
  const jobs = await work();
  const seconds = (performance.now() - start) / 1000;
  return {
    jobs,
    rate: jobs / seconds,
    cpu: (cpuMicros(backends) - before) / jobs,
    ...(await walSince(admin, from, jobs)),
  };
}

async function walPosition(admin) {
  const { rows } = await admin.query('select pg_current_wal_insert_lsn() as lsn');
  return rows[0].lsn;
}

/** `wal`: bytes per job with everything; `images`: the full-page images in it; `hot`: share of heap-only updates. */
async function walSince(admin, from, jobs) {
  await admin.query(`select pg_logical_emit_message(false, 'shapes', 'flush', true)`); // what is not flushed is not read
  const { rows } = await admin.query(
    `select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), $1) as wal,
       sum(fpi_size) as images,
       sum(count) filter (where "resource_manager/record_type" like 'Heap/UPDATE%') as updates,
       sum(count) filter (where "resource_manager/record_type" like 'Heap/HOT_UPDATE%') as hot
     from pg_get_wal_stats($1, pg_current_wal_insert_lsn(), true)`,
    [from],
  );
  const [wal, images, updates, hot] = ['wal', 'images', 'updates', 'hot'].map((column) => Number(rows[0][column]));
  return { wal: wal / jobs, images: images / jobs, hot: hot / (updates + hot || 1) };
}

/** Time on a processor, from the scheduler's nanosecond clock. */
function cpuMicros(pids) {
  const read = (pid) => Number(fs.readFileSync(`/proc/${pid}/schedstat`, 'utf8').split(' ')[0]) / 1000;
  return pids.reduce((sum, pid) => sum + read(pid), 0);
}

/** Bytes of tables with their indexes, TOAST and partitions. */
export async function sizeOf(admin, tables) {
  const { rows } = await admin.query(
    `select sum(pg_total_relation_size(relation)) as bytes
     from (
       select name::regclass from unnest($1::text[]) as root(name)
       union
       select relid from unnest($1::text[]) as root(name), pg_partition_tree(name::regclass)
     ) as tree(relation)`,
    [tables],
  );
  return Number(rows[0].bytes);
}
