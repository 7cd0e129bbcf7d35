// node unpack_chromium.mjs: unpacks the browser and the libraries that a bare machine lacks below TMPDIR.
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { pathToFileURL } from "node:url";

const entry = createRequire(`${process.cwd()}/package.json`).resolve("@sparticuz/chromium");
const { default: chromium, inflate } = await import(pathToFileURL(entry));
await chromium.executablePath();
await inflate(join(dirname(dirname(entry)), "bin", "al2023.tar.br"));
