/** The models that the server has, and the one that the next chat begins with. */
import { type Client, type Model, callError } from "@backchannel/client";

export class Models {
  /** Undefined until they are known. */
  all: readonly Model[] | undefined;
  /** Why they are not; empty if they are, or are being asked for. */
  error = "";

  async load(client: Client): Promise<void> {
    this.error = "";
    try {
      this.all = await client.models();
    } catch (thrown) {
      this.error = callError(thrown).message;
    }
  }

  named(name: string): Model | undefined {
    return this.all?.find((model) => model.name === name);
  }

  /** The one of this name, else the server's first. */
  choose(name: string): Model | undefined {
    return this.named(name) ?? this.all?.[0];
  }
}
