/** The service as people run it, with its Envoy, in a process that tests may kill. */
import { type ChildProcess, spawn } from "node:child_process";
import { mkdtempSync, openSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { fileURLToPath } from "node:url";

const PYTHON = process.env["PYTHON"] ?? "python3";
const MIRROR = fileURLToPath(new URL("../../../tests/integration/web/mirror", import.meta.url));
const START_MS = 30_000;

export class Site {
  readonly #folder = mkdtempSync(join(tmpdir(), "backchannel-page-"));
  #process: ChildProcess | undefined;
  #ports = { grpc: 0, http: 0 };

  /** @param settings More of the server's settings, as environment variables. */
  constructor(private readonly settings: Readonly<Record<string, string>> = {}) {}

  get url(): string {
    return `http://127.0.0.1:${this.#ports.http}`;
  }

  /** Starts, or starts again at the same ports with the same log. */
  async start(): Promise<void> {
    const out = openSync(join(this.#folder, "out"), "w");
    const err = openSync(join(this.#folder, "err"), "w");
    const { grpc, http } = this.#ports;
    const options = [
      ...["--engine", "scripted", "--engine", "mirror", "--log", `sqlite:///${this.#folder}/log.db`],
      ...["--listen", `127.0.0.1:${grpc}`, "--edge", "--edge-listen", `127.0.0.1:${http}`],
      ...["--log-format", "json", "--drain-grace", "1"],
    ];
    this.#process = spawn(PYTHON, ["-m", "backchannel", "serve", ...options], {
      stdio: ["ignore", out, err],
      env: {
        ...process.env,
        ...this.settings,
        PYTHONPATH: [MIRROR, process.env["PYTHONPATH"] ?? ""].filter(Boolean).join(delimiter),
      },
    });
    await until("the service serves", () => {
      if (this.#process?.exitCode !== null) {
        throw new Error(`it died:\n${this.output}`);
      }
      const found = { grpc: this.#port("serving"), http: this.#port("edge_serving") };
      this.#ports = { grpc: found.grpc || grpc, http: found.http || http };
      return found.grpc > 0 && found.http > 0;
    });
  }

  get output(): string {
    return ["out", "err"].map((name) => readFileSync(join(this.#folder, name), "utf8")).join("");
  }

  /** The process of its Envoy. */
  get envoy(): number {
    return Number(this.#logged("edge_serving", "edge_restarted").at(-1)?.["pid"] ?? 0);
  }

  /** As if the power had gone; Envoy goes too. */
  async kill(): Promise<void> {
    const { envoy } = this;
    await this.#end("SIGKILL");
    try {
      process.kill(envoy, "SIGKILL");
    } catch {
      // It went by itself.
    }
  }

  /** As one stops it. */
  stop(): Promise<void> {
    return this.#end("SIGTERM");
  }

  async close(): Promise<void> {
    await this.kill();
    rmSync(this.#folder, { recursive: true, force: true });
  }

  async #end(signal: NodeJS.Signals): Promise<void> {
    const running = this.#process;
    if (running && running.exitCode === null && running.signalCode === null) {
      const over = new Promise((resolve) => running.once("exit", resolve));
      running.kill(signal);
      await over;
    }
  }

  #port(event: string): number {
    const address = String(this.#logged(event).at(-1)?.["address"] ?? "");
    return Number(address.split(":").at(-1) ?? 0);
  }

  #logged(...events: string[]): Record<string, unknown>[] {
    return readFileSync(join(this.#folder, "err"), "utf8")
      .split("\n")
      .flatMap((line) => {
        try {
          const entry = JSON.parse(line) as Record<string, unknown>;
          return events.includes(String(entry["event"])) ? [entry] : [];
        } catch {
          return [];
        }
      });
  }
}

/** Waits until something holds. */
export async function until(
  what: string,
  holds: () => boolean | Promise<boolean>,
  mostMs = START_MS,
): Promise<void> {
  const endMs = Date.now() + mostMs;
  while (!(await holds())) {
    if (Date.now() > endMs) {
      throw new Error(`waited ${mostMs / 1000} s in vain until ${what}`);
    }
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
