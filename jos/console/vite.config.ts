// The whole application is one script and one style sheet below /console; nothing is inlined (see the CSP in
// jos/api/console.py) and nothing is fetched from another origin.
import { defineConfig } from "vite";

export default defineConfig({
  base: "/console/",
  build: { target: "es2023", assetsInlineLimit: 0, modulePreload: false, chunkSizeWarningLimit: 400 },
});
