// Perfetto's trace processor as its web page runs it, without a browser: node trace_processor.mjs FOLDER < requests > replies
//
// FOLDER holds the page's engine_bundle.js and trace_processor*.wasm. Requests and replies are streams of
// perfetto.protos.TraceProcessorRpcStream.
import { readFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import vm from "node:vm";

const folder = process.argv[2];

// What the bundle finds in a worker of a page: it asks for its module at once, and waits for the reply.
class Request {
  open(_method, url) {
    this.file = join(folder, url.split("/").pop());
  }
  send() {
    const bytes = readFileSync(this.file);
    this.response = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
    this.status = 200;
  }
}

// The bundle shall take this for a worker and not for node.
const page = { console: { log() {}, info() {}, debug() {}, warn: console.error, error: console.error }, XMLHttpRequest: Request };
for (const name of ["TextDecoder", "TextEncoder", "setTimeout", "clearTimeout", "performance", "URL", "crypto", "queueMicrotask", "structuredClone"]) {
  page[name] = globalThis[name];
}
page.self = page;
page.WorkerGlobalScope = function () {};
page.importScripts = () => {};
page.location = { href: "https://trace.invalid/engine_bundle.js" };
vm.createContext(page);
// Sizes and errors are checked against these, which a context has of its own.
vm.runInContext(readFileSync(join(folder, "engine_bundle.js"), "utf8"), page, { filename: "engine_bundle.js" });

const write = (bytes) => {
  for (let at = 0; at < bytes.length; ) at += writeSync(1, bytes, at);
};
const port = { postMessage: write };
page.onmessage({ data: port });
const requests = readFileSync(0);
// It is ready when its module is, which it does not say.
setTimeout(() => {
  const bytes = vm.runInContext("(length) => new Uint8Array(length)", page)(requests.length);
  bytes.set(requests);
  port.onmessage({ data: bytes });
}, 0);
