// The same claim and settle as functions that carry their planner settings: no session state, no plan that sorts.

/** What a plan made on an empty table must not use, because it is kept when the table has filled. */
export const planner = ['enable_seqscan=off', 'enable_sort=off', 'enable_nestloop=off', 'enable_mergejoin=off'];

export function inFunctions(shape) {
  const settings = planner.map((setting) => `set ${setting}`).join(' ');
  const claim = shape.claim('run_at <= now()').replaceAll('$1', 'worker').replaceAll('$2', 'count');
  const settle = shape.settle.replaceAll('$1', 'ids').replaceAll('$2', 'fences').replaceAll('$3', 'times');
  return {
    ...shape,
    ddl: `${shape.ddl}
      create function claim_jobs(worker text, count int)
      returns table (
        id uuid, fence bigint, run_at timestamptz, priority int, attempts int, max_attempts int,
        task text, queue text, flags text[], payload json
      )
      language plpgsql ${settings} as $$
      #variable_conflict use_column
      begin
        return query ${claim};
      end $$;
      create function settle_jobs(ids uuid[], fences bigint[], times int[])
      returns int
      language plpgsql ${settings} as $$
      declare
        settled int;
      begin
        ${settle};
        get diagnostics settled = row_count;
        return settled;
      end $$;`,
    claim: () => 'select * from claim_jobs($1, $2)',
    settle: 'select settle_jobs($1, $2, $3) as settled',
  };
}
