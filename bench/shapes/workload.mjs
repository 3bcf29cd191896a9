// What is measured: jobs added in batches, then drained by one connection that claims and one that settles.

const addBatch = 1_000;
const claimBatch = 500;
const workerId = 'bench-worker-01';
const anyDue = 'run_at <= now()';
const dueBehindCursor = 'priority = 0 and (run_at, id) > ($3, $4) and run_at <= now()';
const beginning = { run_at: '-infinity', id: '00000000-0000-0000-0000-000000000000' };

/** The named statements of a shape. */
export function statements(shape, { cursor }) {
  return {
    add: { name: 'add', text: shape.add },
    claim: { name: 'claim', text: shape.claim(cursor ? dueBehindCursor : anyDue) },
    settle: { name: 'settle', text: shape.settle },
  };
}

/** The parameters of each add, made beforehand: what the client spends on them is the same for all shapes. */
export function batches(shape, jobs) {
  return Array.from({ length: Math.ceil(jobs.length / addBatch) }, (_, i) =>
    shape.addParameters(jobs.slice(i * addBatch, (i + 1) * addBatch)),
  );
}

export async function addAll(client, { add }, batches) {
  for (const values of batches) await client.query({ ...add, values });
}

/** Claim k + 1 runs while settle k runs, until nothing is left or `maxMs` have passed. Resolves to the settled jobs. */
export async function drain(claimer, settler, { claim, settle }, { cursor, maxMs = Infinity }) {
  const end = performance.now() + maxMs;
  let last = beginning;
  let settled = 0;
  let settling = Promise.resolve();
  for (;;) {
    const position = cursor ? [last.run_at, last.id] : [];
    const { rows } = await claimer.query({ ...claim, values: [workerId, claimBatch, ...position] });
    await settling;
    if (rows.length === 0) return settled;
    last = rows.reduce((a, b) => (b.id > a.id ? b : a));
    settling = settleBatch(settler, settle, rows).then((count) => (settled += count));
    if (performance.now() > end) return settling;
  }
}

/** Claims `count` jobs and settles none. */
export async function claimOnly(claimer, { claim }, count) {
  for (let claimed = 0; claimed < count;) {
    claimed += (await claimer.query({ ...claim, values: [workerId, Math.min(claimBatch, count - claimed)] })).rowCount;
  }
}

/** A worker that has been idle on an empty table for a while: its statements have got their generic plans there. */
export async function idle(claimer, settler, { claim, settle }, { cursor }) {
  const position = cursor ? [beginning.run_at, beginning.id] : [];
  for (let i = 0; i < 8; i++) {
    await claimer.query({ ...claim, values: [workerId, claimBatch, ...position] });
    await settler.query({ ...settle, values: [[], [], []] });
  }
}

async function settleBatch(client, settle, rows) {
  const values = [rows.map((row) => row.id), rows.map((row) => row.fence), rows.map(() => 3)];
  const result = await client.query({ ...settle, values });
  return Number(result.rows[0]?.settled ?? result.rowCount);
}
