"""A store that Synclave can sync: names and texts in one JSON file. See README.md beside it.

Usage: simple_provider.py FILE [HOST:PORT]. The first line that it prints is its address.
"""
import contextlib
import json
import pathlib
import sys
import threading
import uuid
from hashlib import sha256

import grpc
from synclave.v1 import change_batch_pb2 as data, simple_sync_provider_service_pb2 as simple
from synclave.v1 import simple_sync_provider_service_pb2_grpc as service
from synclave_provider.serving import replace_file, serve

CHUNK = 256 * 1024  # bytes of content in one message; a message takes 4 MiB


def version(text):
    """Any value will do that changes when the item does. This store keeps nothing but the text."""
    return sha256(text.encode()).digest()


class Store(service.SimpleSyncProviderServiceServicer):
    def __init__(self, path):
        self.path, self.name, self.lock, self.instance = path, path.stem, threading.Lock(), str(uuid.uuid4())
        self.id = path.with_name(path.name + ".id")  # tells this store from all others, for ever
        if not self.id.exists():
            self.id.write_text(str(uuid.uuid4()))

    def items(self):
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    @contextlib.contextmanager
    def changing(self):
        """The items, to be changed; then all of the file or nothing of it, and durable before anything is answered."""
        with self.lock:
            yield (items := self.items())
            replace_file(self.path, json.dumps(items, indent=2, sort_keys=True, ensure_ascii=False).encode())

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
        parts = list(requests) or [simple.InsertItemRequest()]
        start, end, content = parts[0].start, parts[-1].end, b"".join(part.chunk for part in parts)
        if 0 < len(start.item_id) <= 4096 and end.content_digest == sha256(content).digest():
            with contextlib.suppress(UnicodeDecodeError):
                return start, start.item_id.decode(), content.decode()
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "this store holds whole texts, under ids of 1 to 4,096 bytes")

    def GetSchema(self, request, context):
        return simple.GetSchemaResponse(store_id=self.id.read_bytes(), instance_id=self.instance, member_name=self.name)

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
        yield simple.LoadItemResponse(end=data.ItemDataEnd(content_digest=sha256(content).digest()))

    def InsertItem(self, requests, context):
        _, name, text = self.receive(requests, context)
        with self.changing() as items:
            if name in items:
                context.abort(grpc.StatusCode.ALREADY_EXISTS, "there is such an item")
            items[name] = text
        return simple.InsertItemResponse(item_version=version(text))

    def UpdateItem(self, requests, context):
        start, _, text = self.receive(requests, context)
        with self.changing() as items:
            items[self.find(items, start, context)] = text
        return simple.UpdateItemResponse(item_version=version(text))

    def DeleteItem(self, request, context):
        with self.changing() as items:
            del items[self.find(items, request, context)]
        return simple.DeleteItemResponse()


if __name__ == "__main__":
    serve(service.add_SimpleSyncProviderServiceServicer_to_server, Store(pathlib.Path(sys.argv[1])), *sys.argv[2:])
