// Sends each line of standard input as a request, by undici or by Node's own fetch.
import { readFileSync } from "node:fs";
import { Readable } from "node:stream";

const [url, by] = process.argv.slice(2);
const token = readFileSync("token", "utf-8");
const { request } = by === "fetch" ? {} : await import("undici");

async function ask(id, path, framing, body) {
  const headers = {
    "Content-Type": "application/json",
    Authorization: `Bearer ${token}`,
    "X-Request-ID": id,
  };
  const chunked = framing === "chunked";
  // A stream is of unknown length, and sent in chunks.
  if (by === "fetch") {
    const given = chunked
      ? { body: Readable.toWeb(Readable.from([Buffer.from(body)])), duplex: "half" }
      : { body };
    const response = await fetch(url + path, { method: "POST", headers, ...given });
    return [response.status, await response.text()];
  }
  const given = chunked ? Readable.from([Buffer.from(body)]) : body;
  const response = await request(url + path, { method: "POST", headers, body: given });
  return [response.statusCode, await response.body.text()];
}

for (const line of readFileSync(0, "utf-8").split("\n").filter(Boolean)) {
  const [id, ...fields] = line.split("\t");
  const [status, answer] = await ask(id, ...fields).catch((error) => [String(error), ""]);
  console.log([id, status, answer].map((part) => String(part).replace(/[\n\t]/g, " ")).join("\t"));
}
