"""A store that Synclave can sync: names and texts in one JSON file. See README.md beside it.

Usage: simple_provider.py FILE [HOST:PORT]. The first line that it prints is its address.
"""
import concurrent.futures
import hashlib
import json
import os
import pathlib
import sys
import threading
import uuid

import grpc
from synclave.v1 import change_batch_pb2 as data, simple_sync_provider_service_pb2 as simple
from synclave.v1.simple_sync_provider_service_pb2_grpc import (
    SimpleSyncProviderServiceServicer, add_SimpleSyncProviderServiceServicer_to_server)

CHUNK = 256 * 1024  # bytes of content in one message; a message takes 4 MiB


def version(text):
    """Any value will do that changes when the item does. This store keeps nothing but the text."""
    return hashlib.sha256(text.encode()).digest()


class Store(SimpleSyncProviderServiceServicer):
    def __init__(self, path):
        self.path, self.lock, self.instance = path, threading.Lock(), str(uuid.uuid4())
        id_path = path.with_name(path.name + ".id")  # tells this store from all others, for ever
        if not id_path.exists():
            id_path.write_text(str(uuid.uuid4()))
        self.store_id = id_path.read_bytes()

    def items(self):
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    def save(self, items):
        """All of the file or nothing of it, and durable: only then an item is answered as stored."""
        temporary = self.path.with_name(self.path.name + ".tmp")
        with open(temporary, "w") as file:
            json.dump(items, file, indent=2, sort_keys=True, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)

    def find(self, items, request, context):
        """The item's name, when it is there and at the version that the caller expects."""
        name = request.item_id.decode(errors="replace")
        if name not in items:
            context.abort(grpc.StatusCode.NOT_FOUND, "there is no such item")
        if version(items[name]) != request.expected_item_version:
            context.abort(grpc.StatusCode.ABORTED, "the item has changed")
        return name

    def receive(self, requests, context):
        """What comes with an insert or update: start, chunks, and an end without which nothing counts."""
        start, content = next(requests, simple.InsertItemRequest()).start, b""
        for request in requests:
            if request.WhichOneof("part") == "end":
                if not 0 < len(start.item_id) <= 4096 or hashlib.sha256(content).digest() != request.end.content_digest:
                    context.abort(grpc.StatusCode.INVALID_ARGUMENT, "id or content are not what they must be")
                try:
                    start.item_id.decode()
                    return start, content.decode()
                except UnicodeDecodeError:
                    context.abort(grpc.StatusCode.INVALID_ARGUMENT, "this store holds text, and this is none")
            content += request.chunk
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the data has no end")

    def GetSchema(self, request, context):
        return simple.GetSchemaResponse(store_id=self.store_id, instance_id=self.instance, member_name=self.path.stem)

    def EnumerateItems(self, request, context):
        for name, text in self.items().items():
            item = simple.SimpleItem(item_id=name.encode(), item_version=version(text))
            yield simple.EnumerateItemsResponse(items=simple.SimpleItems(items=[item]))
        yield simple.EnumerateItemsResponse(complete=simple.EnumerationComplete())

    def LoadItem(self, request, context):
        items = self.items()
        content = items[self.find(items, request, context)].encode()
        yield simple.LoadItemResponse(header=data.ItemDataHeader(content_size=len(content)))
        for at in range(request.offset, len(content), CHUNK):
            yield simple.LoadItemResponse(chunk=content[at:at + CHUNK])
        yield simple.LoadItemResponse(end=data.ItemDataEnd(content_digest=hashlib.sha256(content).digest()))

    def InsertItem(self, requests, context):
        start, text = self.receive(requests, context)
        with self.lock:
            items = self.items()
            if (name := start.item_id.decode()) in items:
                context.abort(grpc.StatusCode.ALREADY_EXISTS, "there is such an item")
            self.save(items | {name: text})
        return simple.InsertItemResponse(item_version=version(text))

    def UpdateItem(self, requests, context):
        start, text = self.receive(requests, context)
        with self.lock:
            items = self.items()
            self.save(items | {self.find(items, start, context): text})
        return simple.UpdateItemResponse(item_version=version(text))

    def DeleteItem(self, request, context):
        with self.lock:
            items = self.items()
            del items[self.find(items, request, context)]
            self.save(items)
        return simple.DeleteItemResponse()


if __name__ == "__main__":
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(16))
    add_SimpleSyncProviderServiceServicer_to_server(Store(pathlib.Path(sys.argv[1])), server)
    host, _, port = (sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1:0").rpartition(":")
    print(f"http://{host}:{server.add_insecure_port(f'{host}:{port}')}", flush=True)
    server.start()
    server.wait_for_termination()
