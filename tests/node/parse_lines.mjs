// Reads JSON Lines from stdin as JavaScript does, and writes each line as it was understood.
import { readFileSync } from "node:fs";

for (const line of readFileSync(0, "utf8").trimEnd().split("\n")) {
  console.log(JSON.stringify(JSON.parse(line)));
}
