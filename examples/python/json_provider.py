"""A whole provider for a directory of JSON files: what it stores, and how. The rest is synclave_provider. See README.md.

Usage: json_provider.py DIRECTORY [HOST:PORT]. The first line that it prints is its address.

An item is a file NAME.json: {"text": …} or {"base64": …}, with "properties" that came with it. Its id is NAME, with %XX for bytes
that a file name does not have; one that is too long for that is in the file, as "id". The file's time is the item's.
"""
import base64
import hashlib
import json
import pathlib
import sys
import urllib.parse

from synclave_provider import Changed, Item, Provider, Replica, replace_file, serve_provider

BROKEN = ValueError, KeyError, TypeError, AttributeError, PermissionError  # half written by an editor, say


class Directory:
    def __init__(self, path):
        self.path, self.name = path, path.name

    def file(self, item):
        name = urllib.parse.quote(item, safe=" ")
        name = "%2E" + name[1:] if name.startswith(".") else name
        return self.path / f"{name if len(name) <= 200 else '~' + hashlib.sha256(item).hexdigest()}.json"

    @staticmethod
    def read(path):
        """Id and item of a file."""
        raw = path.read_bytes()
        document = json.loads(raw)
        text = document.get("text")
        content = text.encode() if text is not None else base64.b64decode(document["base64"], validate=True)
        item = Item(content, document.get("properties", {}), path.stat().st_mtime_ns, hashlib.sha256(raw).hexdigest())
        return urllib.parse.unquote_to_bytes(document.get("id", path.stem)), item

    def items(self):
        for path in self.path.iterdir():
            if path.suffix == ".json" and not path.name.startswith("."):
                try:
                    yield self.read(path)
                except FileNotFoundError:  # deleted just now
                    pass
                except BROKEN:
                    yield urllib.parse.unquote_to_bytes(path.stem), None

    def get(self, item):
        try:
            return self.read(self.file(item))[1]
        except FileNotFoundError:
            return None
        except BROKEN:
            raise Changed from None

    def put(self, item, content, properties, modified):
        path, document = self.file(item), {}
        if path.name.startswith("~"):
            document["id"] = urllib.parse.quote(item)
        try:
            document["text"] = content.decode()
        except UnicodeDecodeError:
            document["base64"] = base64.b64encode(content).decode()
        if properties:
            document["properties"] = properties
        raw = json.dumps(document, ensure_ascii=False, indent=1).encode()
        replace_file(path, raw, modified)
        return hashlib.sha256(raw).hexdigest()

    def delete(self, item):
        self.file(item).unlink(missing_ok=True)


if __name__ == "__main__":
    directory = Directory(pathlib.Path(sys.argv[1]).absolute())
    serve_provider(Provider(Replica(directory, directory.path / ".book.db")), *sys.argv[2:])
