import { fileURLToPath } from "node:url";
import { defineConfig } from "vitest/config";

const client = fileURLToPath(new URL("client/src/index.ts", import.meta.url));

export default defineConfig({
  resolve: { alias: { "@backchannel/client": client } },
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
  test: { include: ["{client,page}/test/**/*.test.{ts,tsx}"] },
});
