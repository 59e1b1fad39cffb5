/** How the page is connected: now, and how often it was lost. */
import type { Connection } from "@backchannel/client";

export class Link {
  connection: Connection = { state: "connecting" };
  /** When the connection was lost, by the page's clock; undefined while there is one. */
  lostAtMs: number | undefined;
  /** How often a lost connection came back. */
  reconnects = 0;
  /** How often the server no longer had all events of the time in between. */
  gaps = 0;

  /** The session is over: nothing more can be said in it. */
  get over(): boolean {
    return this.connection.state === "ended";
  }

  /**
   * Takes what has become of the connection.
   *
   * @returns What to tell the user of one that came back; empty if it is none.
   */
  take(connection: Connection): string {
    this.connection = connection;
    if (connection.state === "lost") {
      this.lostAtMs ??= performance.now();
      return "";
    }
    const { lostAtMs } = this;
    if (connection.state !== "open" || lostAtMs === undefined) {
      return "";
    }
    this.lostAtMs = undefined;
    this.reconnects += 1;
    const seconds = ((performance.now() - lostAtMs) / 1000).toFixed(1);
    return connection.resumed
      ? `Back after ${seconds} s. Nothing was missed: it went on after event ${connection.afterSeq}.`
      : `Back after ${seconds} s.`;
  }
}
