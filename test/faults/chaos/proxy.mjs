// Between the library and PostgreSQL: a port that stays while servers come and go, and lines that can be cut.
import { once } from 'node:events';
import net from 'node:net';

export class Proxy {
  /** Where new connections go. */
  target = 0;
  refusing = false;
  delayMs = 0;
  #lines = new Set();
  #server = net.createServer({ allowHalfOpen: true }, (client) => this.#accept(client));

  async listen() {
    this.#server.listen(0, '127.0.0.1');
    await once(this.#server, 'listening');
    return this.#server.address().port;
  }

  /** Ends connections, without a word to either side. */
  cut(chance = () => true) {
    for (const line of this.#lines) if (chance()) line.destroy();
  }

  /** The database's answers are lost from here on, and the database hears no more: the client sees a silent line. */
  blackHole(chance = () => true) {
    for (const line of this.#lines) if (chance()) line.silent = true;
  }

  /** The way is clear again; lines that have gone silent are ended, as every network does in the end. */
  heal() {
    this.refusing = false;
    this.delayMs = 0;
    for (const line of this.#lines) if (line.silent) line.destroy();
  }

  /** The client's side is told that the database has said its last word; what it sends still arrives. */
  halfClose(chance = () => true) {
    for (const line of this.#lines) if (chance()) line.client.end();
  }

  async close() {
    this.#server.close();
    this.cut();
    await once(this.#server, 'close');
  }

  #accept(client) {
    if (this.refusing) return client.resetAndDestroy();
    const database = net.connect({ port: this.target, host: '127.0.0.1', allowHalfOpen: true });
    const line = { client, database, silent: false, destroy };
    const lines = this.#lines;
    lines.add(line);
    function destroy() {
      lines.delete(line);
      client.destroy();
      database.destroy();
    }
    const forward = (from, to) => {
      from.on('data', (bytes) => {
        if (line.silent) return;
        if (!this.delayMs) return to.write(bytes);
        // Later bytes must not overtake: the line waits as a whole.
        from.pause();
        setTimeout(() => {
          if (!to.destroyed) to.write(bytes);
          from.resume();
        }, this.delayMs);
      });
      from.on('end', () => !line.silent && to.end());
      from.on('error', destroy);
      from.on('close', () => !line.silent && destroy());
    };
    client.setNoDelay();
    database.setNoDelay();
    forward(client, database);
    forward(database, client);
  }
}
