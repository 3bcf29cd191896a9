// What the caller may choose, and how a choice that cannot work is refused.
import net from 'node:net';
import { afterAll, afterEach, beforeEach, expect, it } from '@jest/globals';
import { EmbeddedPostgresError, startEmbeddedPostgres } from '../../lib/embedded.js';
import { InvalidArgumentError, JobsError } from '../../lib/jobs.errors.js';
import { ask, refusalOf, removeLibrary, Workspace } from './harness.js';

let workspace: Workspace;
beforeEach(() => {
  workspace = new Workspace();
});
afterEach(() => workspace.close());
afterAll(removeLibrary);

it('a temporary server is fast, speaks UTF-8, is reached by 127.0.0.1 only, and takes settings', async () => {
  const postgres = await startEmbeddedPostgres({ settings: { max_connections: 7, log_connections: true } });
  const settings = await ask(
    postgres.url,
    `select current_setting('fsync') fsync, current_setting('server_encoding') encoding, current_user,
      current_setting('listen_addresses') address, current_setting('unix_socket_directories') sockets,
      current_setting('max_connections') connections, current_database(),
      (select datcollate from pg_database where datname = current_database()) collation`,
  );
  await postgres.stop();
  expect(settings).toEqual({
    fsync: 'off',
    encoding: 'UTF8',
    collation: 'C',
    address: '127.0.0.1',
    sockets: '',
    connections: '7',
    current_user: 'postgres',
    current_database: 'postgres',
  });
  expect(postgres.url).toBe(`postgres://postgres@127.0.0.1:${postgres.port}/postgres`);
});

it('a server that logs to files is ready all the same', async () => {
  const postgres = await startEmbeddedPostgres({ settings: { logging_collector: 'on', log_min_messages: 'panic' } });
  expect(await ask(postgres.url, 'show logging_collector')).toEqual({ logging_collector: 'on' });
  await postgres.stop();
});

it('a taken port is refused', async () => {
  const other = net.createServer().listen(0, '127.0.0.1');
  await new Promise((resolve) => other.once('listening', resolve));
  const { port } = other.address() as net.AddressInfo;
  const refusal = await refusalOf({ port });
  await new Promise((resolve) => other.close(resolve));
  expect(refusal.reason).toBe('PORT_TAKEN');
  expect(refusal.message).toMatch(new RegExp(`^Expected port ${port} on 127.0.0.1 to be free, got: .*EADDRINUSE`));
  expect(workspace.leftovers()).toEqual([]);
});

it.each([
  ['value', { max_connections: 'banana' }, 'FATAL:  invalid value for parameter "max_connections": "banana"'],
  ['name', { max_conections: 7 }, 'FATAL:  unrecognized configuration parameter "max_conections"'],
])(
  'a setting’s %s that PostgreSQL refuses is told in its own words, and nothing is left',
  async (_, settings, line) => {
    const refusal = await refusalOf({ settings });
    expect(refusal).toBeInstanceOf(EmbeddedPostgresError);
    expect(refusal).toBeInstanceOf(JobsError);
    expect(refusal).toMatchObject({ code: 'ERR_JOBS_EMBEDDED_POSTGRES', reason: 'SETTING_REFUSED' });
    expect(refusal.message).toContain(line);
    expect(workspace.leftovers()).toEqual([]);
  },
);

it('options that make no sense are all named before anything is started', async () => {
  const options = {
    datadir: '.data',
    dataDir: '',
    port: 65_536,
    settings: { listen_addresses: '*', 'max connections': 1, work_mem: null },
  };
  const refusal = (await refusalOf(options as object)) as unknown as InvalidArgumentError;
  expect(refusal).toBeInstanceOf(InvalidArgumentError);
  expect(refusal.problems).toEqual([
    'Unknown option datadir; did you mean dataDir?',
    'Expected dataDir to be the path of a folder, got "".',
    'Expected port to be an integer from 0 to 65535, got 65536.',
    'Expected settings without "listen_addresses": the server listens on 127.0.0.1 only; see the options port and dataDir.',
    'Expected the name of a setting, got "max connections".',
    'Expected settings.work_mem to be a string, number or boolean, got null.',
  ]);
});
