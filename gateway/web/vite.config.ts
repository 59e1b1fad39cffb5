import { fileURLToPath } from "node:url";
import { defineConfig } from "vite";

const here = (path: string) => fileURLToPath(new URL(path, import.meta.url));

export default defineConfig({
  root: here("page"),
  resolve: { alias: { "@backchannel/client": here("client/src/index.ts") } },
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
  build: {
    outDir: here("../backchannel_gateway/static"),
    emptyOutDir: true,
    target: "es2022",
    // The policy of the page forbids what is inline.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    sourcemap: false,
    reportCompressedSize: true,
    license: { fileName: "assets/licenses.txt" },
  },
  // For work on the page: `npx vite`, beside a server with its edge at 127.0.0.1:8080.
  server: {
    proxy: { "^/(v1/|backchannel\\.v1\\.)": { target: "http://127.0.0.1:8080" } },
  },
});
