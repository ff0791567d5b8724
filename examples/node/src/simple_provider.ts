// A store that Synclave can sync: names and texts in one JSON file. See README.md.
//
// Usage: node dist/simple_provider.js FILE [HOST:PORT]. The first line that it prints is its address.
import { createHash, randomUUID } from "node:crypto";
import { existsSync, openSync, readFileSync, renameSync, writeFileSync, fsyncSync, closeSync } from "node:fs";
import { basename } from "node:path";

import * as grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import type { ProtoGrpcType } from "./generated/simple_sync_provider_service.js";
import type { SimpleSyncProviderServiceHandlers } from "./generated/synclave/v1/SimpleSyncProviderService.js";

const CHUNK = 256 * 1024; // bytes of content in one message; a message takes 4 MiB
const [path = "", address = "127.0.0.1:0"] = process.argv.slice(2);
const { status } = grpc;

type Items = Record<string, string>;
type Bytes = Buffer | Uint8Array | string;
type Start = { item_id?: Bytes; expected_item_version?: Bytes } | null;
type Part = { part?: string; start?: Start; chunk?: Bytes; end?: { content_digest?: Bytes } | null };

const digest = (content: string | Buffer) => createHash("sha256").update(content).digest();
const bytes = (value?: Bytes | null) => Buffer.from((value ?? "") as Buffer);

// Any value will do that changes when the item does. This store keeps nothing but the text.
const version = digest;

class Refused extends Error {
  constructor(readonly code: grpc.status, readonly details: string) {
    super(details);
  }
}

// Tells this store from all others, for ever.
function storeId(): Buffer {
  if (!existsSync(`${path}.id`)) writeFileSync(`${path}.id`, randomUUID());
  return readFileSync(`${path}.id`);
}

function read(): Items {
  return existsSync(path) ? (JSON.parse(readFileSync(path, "utf8")) as Items) : {};
}

// All of the file or nothing of it, and durable: only then an item is answered as stored. Everything from reading the items
// to this is one step: nothing else of this process runs in between.
function save(items: Items): void {
  const file = openSync(`${path}.tmp`, "w");
  writeFileSync(file, JSON.stringify(items, Object.keys(items).sort(), 2));
  fsyncSync(file);
  closeSync(file);
  renameSync(`${path}.tmp`, path);
}

function text(content: Buffer): string {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(content);
  } catch {
    throw new Refused(status.INVALID_ARGUMENT, "this store holds text, and this is none");
  }
}

// The item's name, when it is there and at the version that the caller expects.
function find(items: Items, wanted: Start): string {
  const name = bytes(wanted?.item_id).toString();
  const found = Object.hasOwn(items, name) ? items[name] : undefined;
  if (found === undefined) throw new Refused(status.NOT_FOUND, "there is no such item");
  if (!version(found).equals(bytes(wanted?.expected_item_version)))
    throw new Refused(status.ABORTED, "the item has changed");
  return name;
}

// What comes with an insert or update: start, chunks, and an end without which nothing counts.
async function receive(parts: AsyncIterable<Part>): Promise<{ start: Start; content: string }> {
  let start: Start = null;
  const chunks: Buffer[] = [];
  for await (const part of parts) {
    if (part.part === "start") start = part.start ?? null;
    else if (part.part === "chunk") chunks.push(bytes(part.chunk));
    else if (part.part === "end") {
      const content = Buffer.concat(chunks);
      if (!digest(content).equals(bytes(part.end?.content_digest)))
        throw new Refused(status.INVALID_ARGUMENT, "the content is not what was announced");
      const id = bytes(start?.item_id);
      if (id.length < 1 || id.length > 4096) throw new Refused(status.INVALID_ARGUMENT, "an id has 1 to 4,096 bytes");
      text(id);
      return { start, content: text(content) };
    }
  }
  throw new Refused(status.INVALID_ARGUMENT, "the data has no end");
}

// What was thrown, as the status of the call.
const failure = (error: unknown): Partial<grpc.StatusObject> =>
  error instanceof Refused
    ? { code: error.code, details: error.details }
    : { code: status.UNKNOWN, details: String(error) };

const handlers: SimpleSyncProviderServiceHandlers = {
  GetSchema(_call, answer) {
    answer(null, { store_id: storeId(), instance_id: INSTANCE, member_name: basename(path, ".json") });
  },

  EnumerateItems(call) {
    for (const [name, content] of Object.entries(read())) {
      call.write({ items: { items: [{ item_id: Buffer.from(name), item_version: version(content) }] } });
    }
    call.write({ complete: {} });
    call.end();
  },

  LoadItem(call) {
    try {
      const items = read();
      const content = Buffer.from(items[find(items, call.request)] ?? "");
      call.write({ header: { content_size: content.length } });
      for (let at = Number(call.request.offset); at < content.length; at += CHUNK) {
        call.write({ chunk: content.subarray(at, at + CHUNK) });
      }
      call.write({ end: { content_digest: digest(content) } });
      call.end();
    } catch (error) {
      call.emit("error", failure(error));
    }
  },

  InsertItem(call, answer) {
    receive(call as AsyncIterable<Part>)
      .then(({ start, content }) => {
        const items = read();
        const name = bytes(start?.item_id).toString();
        if (Object.hasOwn(items, name)) throw new Refused(status.ALREADY_EXISTS, "there is such an item");
        save({ ...items, [name]: content });
        answer(null, { item_version: version(content) });
      })
      .catch((error) => answer(failure(error)));
  },

  UpdateItem(call, answer) {
    receive(call as AsyncIterable<Part>)
      .then(({ start, content }) => {
        const items = read();
        save({ ...items, [find(items, start)]: content });
        answer(null, { item_version: version(content) });
      })
      .catch((error) => answer(failure(error)));
  },

  DeleteItem(call, answer) {
    try {
      const items = read();
      delete items[find(items, call.request)];
      save(items);
      answer(null, {});
    } catch (error) {
      answer(failure(error));
    }
  },
};

const INSTANCE = randomUUID();
const definition = loadSync("synclave/v1/simple_sync_provider_service.proto", {
  includeDirs: [new URL("../../../proto", import.meta.url).pathname],
  keepCase: true,
  longs: Number,
  oneofs: true,
  defaults: true,
});
const { synclave } = grpc.loadPackageDefinition(definition) as unknown as ProtoGrpcType;
const server = new grpc.Server();
server.addService(synclave.v1.SimpleSyncProviderService.service, handlers);
server.bindAsync(address, grpc.ServerCredentials.createInsecure(), (error, port) => {
  if (error) throw error;
  console.log(`http://${address.slice(0, address.lastIndexOf(":"))}:${port}`);
});
