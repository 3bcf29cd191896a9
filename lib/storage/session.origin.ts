// How a connection came to a handler: what its application had set on it, and how it is brought back there.
import pg from 'pg';

/** Settings of the handler's that must not hold for the library's own statements. */
export const DISTURBING = ['role', 'statement_timeout', 'lock_timeout'] as const;
export type Settings = Record<(typeof DISTURBING)[number], string>;
export const SETTINGS = DISTURBING.map((name) => `pg_catalog.current_setting('${name}') as ${name}`).join(', ');
const ORIGIN =
  `select pg_catalog.pg_backend_pid() as pid, session_user::text as login, ${SETTINGS}, ` +
  `(select pg_catalog.json_object_agg(name, setting) from pg_catalog.pg_settings where source = 'session') as settings`;

interface OriginRow extends Settings {
  pid: number;
  login: string;
  settings: Record<string, string> | null;
}

/** How a connection came: what its application has set on it. */
export interface Origin {
  settings: Settings;
  /** SQL that brings it back there; null: a pooler stands between, and cleans up itself. */
  restore: string | null;
}

export async function originOf(client: pg.PoolClient): Promise<Origin> {
  const row = (await client.query<OriginRow>(ORIGIN)).rows[0]!;
  const { processID } = client as { processID?: number | null };
  return { settings: row, restore: processID && processID !== row.pid ? null : restoring(row) };
}

function restoring({ login, role, settings }: OriginRow): string {
  const set = Object.entries(settings ?? {}).map(
    ([name, value]) => `select pg_catalog.set_config(${pg.escapeLiteral(name)}, ${pg.escapeLiteral(value)}, false)`,
  );
  const asRole = role === 'none' ? 'none' : pg.escapeIdentifier(role);
  return [`set session authorization ${pg.escapeIdentifier(login)}`, `set role ${asRole}`, 'reset all', ...set].join(
    '; ',
  );
}
