// node clients.mjs URL CLIENT ID...: one track, one identify and one page with these messageIds; exit code 1 on any error.
import { createRequire } from "node:module";

const [url, kind, track, identify, page] = process.argv.slice(2);
// Packages live in the cache folder, which is the working directory, and not beside this file.
const load = createRequire(`${process.cwd()}/package.json`);

function fail(error) {
  console.error(error);
  process.exitCode = 1;
}

const who = { userId: "client-user" };
const messages = [
  ["track", { ...who, event: "Bought", properties: { price: 1.5 }, messageId: track }],
  ["identify", { ...who, traits: { plan: "free" }, messageId: identify }],
  ["page", { ...who, category: "Docs", name: "Home", properties: { url: "https://example.org" }, messageId: page }],
];

if (kind === "segment") {
  const { Analytics } = load("@segment/analytics-node");
  const client = new Analytics({ writeKey: "shop-token", host: url, maxRetries: 3 });
  client.on("error", fail);
  for (const [type, message] of messages) client[type](message);
  await client.closeAndFlush({ timeout: 20000 });
} else {
  const Rudder = load("@rudderstack/rudder-sdk-node");
  const client = new (Rudder.default ?? Rudder)("shop-token", { dataPlaneUrl: url, gzip: kind === "rudder-gzip" });
  for (const [type, message] of messages) client[type](message, (error) => error && fail(error));
  await client.flush();
}
