// Functions say `#variable_conflict use_column`, for what they return is named like columns. A parameter or a variable of such
// a name would be read as the column, without a word.
import { afterAll, beforeAll, expect, it } from '@jest/globals';
import { createTestManager, type TestManager } from '../support/manager.js';

let test: TestManager;

beforeAll(async () => {
  test = await createTestManager();
});
afterAll(() => test.close());

interface Written {
  name: string;
  body: string;
  parameters: string[];
}

const variablesOf = (body: string): string[] => {
  const declared = /\bdeclare\b([\s\S]*?)\bbegin\b/.exec(body)?.[1] ?? '';
  return [...declared.matchAll(/^\s+([a-z_]+) /gm)].map(([, name]) => name!);
};

it('no parameter or variable of a function is named like a column of a table that the function reads', async () => {
  const functions = await test.sql<Written>(`
    select p.proname as name, p.prosrc as body, (
      select coalesce(json_agg(a.name), '[]') from unnest(p.proargnames) with ordinality a(name, nth)
      where coalesce(p.proargmodes[a.nth], 'i') = 'i'
    ) as parameters
    from pg_proc p join pg_language l on l.oid = p.prolang
    where p.pronamespace = 'jobs'::regnamespace and l.lanname = 'plpgsql' and p.prosrc like '%use_column%'`);
  expect(functions.length).toBeGreaterThan(10);
  const columns = await test.sql<{ table_name: string; names: string[] }>(`
    select c.table_name, json_agg(c.column_name) as names from information_schema.columns c
    where c.table_schema = 'jobs' group by c.table_name`);
  const hidden = functions.flatMap(({ name, body, parameters }) => {
    const read = columns.filter(({ table_name: table }) => new RegExp(`\\b${table}\\b`).test(body));
    const names = new Set([...parameters, ...variablesOf(body)]);
    return read.flatMap((table) =>
      table.names.filter((column) => names.has(column)).map((column) => `${name}: ${table.table_name}.${column}`),
    );
  });
  expect(hidden).toEqual([]);
});
