"""A directory of JSON files, and the book that is kept of it: which version of which item is there, and what the replica knows.

An item is a file NAME.json: {"text": …} or {"base64": …}, with "properties" that came with it. Its id is NAME, with %XX for bytes
that a file name does not have; one that is too long for that is in the file, as "id". The file's time is the item's.
"""
import base64
import hashlib
import json
import os
import pathlib
import sqlite3
import threading
import time
import urllib.parse
import uuid

import units
from knowledge import Knowledge
from synclave.v1 import knowledge_pb2

SCHEMA = """CREATE TABLE IF NOT EXISTS rows (id BLOB PRIMARY KEY, row TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS intents (id BLOB PRIMARY KEY, row TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value NOT NULL);"""


class Changed(Exception):
    """An item is not what the book says: somebody has just edited it."""


def digest(content):
    return hashlib.sha256(content).hexdigest()


class Store:
    def __init__(self, directory):
        self.directory, self.lock = pathlib.Path(directory), threading.RLock()
        self.book = sqlite3.connect(self.directory / ".book.db", check_same_thread=False)
        self.book.executescript("PRAGMA synchronous = FULL;" + SCHEMA)
        self.meta = dict(self.book.execute("SELECT key, value FROM meta"))
        if not self.meta:
            self.start_anew()
        wire = knowledge_pb2.Knowledge.FromString(self.meta["knowledge"])
        self.knowledge = Knowledge.from_wire(wire)

    def start_anew(self):
        """As a new replica, that has seen nothing yet."""
        self.meta = {"replica": uuid.uuid4().bytes, "incarnation": str(uuid.uuid4()), "tick": 0, "knowledge": b""}
        self.knowledge = Knowledge()
        self.book.executescript("DELETE FROM rows; DELETE FROM intents; DELETE FROM meta;")
        self.commit({}, self.knowledge)

    @property
    def replica(self):
        return self.meta["replica"]

    def next_version(self, *learned):
        """Above all that the replica knows or is about to learn: of two versions of an item the later is the greater, everywhere."""
        seen = max(knowledge.highest_tick() for knowledge in (self.knowledge, *learned))
        self.meta["tick"] = max(self.meta["tick"], min(seen, 1 << 62)) + 1  # no peer can use ticks up
        return [self.replica.hex(), self.meta["tick"]]

    def row(self, item, table="rows"):
        found = self.book.execute(f"SELECT row FROM {table} WHERE id = ?", (item,)).fetchone()
        return found and json.loads(found[0])

    def rows(self, table="rows"):
        """By id, ascending."""
        return {item: json.loads(row) for item, row in self.book.execute(f"SELECT id, row FROM {table} ORDER BY id")}

    def commit(self, rows, knowledge):
        """Rows, knowledge and tick, all or nothing. What was intended for the rows has come to its end."""
        self.knowledge = knowledge.with_tick(self.replica, self.meta["tick"])
        wire = self.knowledge.to_wire(knowledge_pb2.Knowledge(), self.replica)
        self.meta["knowledge"] = wire.SerializeToString()
        with self.book:
            self.book.executemany("REPLACE INTO rows VALUES (?, ?)", [(item, json.dumps(rows[item])) for item in rows])
            self.book.executemany("DELETE FROM intents WHERE id = ?", [(item,) for item in rows])
            self.book.executemany("REPLACE INTO meta VALUES (?, ?)", self.meta.items())

    def path(self, item):
        name = urllib.parse.quote(item, safe=" ")
        name = "%2E" + name[1:] if name.startswith(".") else name
        return self.directory / f"{name if len(name) <= 200 else '~' + digest(item)}.json"

    def read(self, item, row):
        """The content, when it is what the row says."""
        path = self.path(item)
        raw = path.read_bytes() if path.exists() else b""
        if digest(raw) != row["file"]:
            raise Changed
        return parse(path, raw)[1]

    def write(self, item, before, after, content, knowledge):
        """Puts an item in place, or deletes it, and takes it into the book. What was there must be what the book says."""
        path, there = self.path(item), before and not before["deleted"]
        raw = path.read_bytes() if path.exists() else None
        if (digest(raw) if raw is not None else None) != (before["file"] if there else None):
            raise Changed
        with self.book:  # so that a crash from here on is recognised by content, and not taken for an edit
            self.book.execute("REPLACE INTO intents VALUES (?, ?)", (item, json.dumps(after)))
        if after["deleted"]:
            path.unlink(missing_ok=True)
        else:
            document = {"id": urllib.parse.quote(item)} if path.name.startswith("~") else {}
            try:
                document["text"] = content.decode()
            except UnicodeDecodeError:
                document["base64"] = base64.b64encode(content).decode()
            document |= {"properties": after["properties"]} if after["properties"] else {}
            raw = json.dumps(document, ensure_ascii=False, indent=1).encode()
            temporary = self.directory / ".incoming"
            with open(temporary, "wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            if after["modified"] is not None:
                os.utime(temporary, ns=(time.time_ns(), after["modified"]))
            os.replace(temporary, path)
            after["file"] = digest(raw)
        self.commit({item: after}, knowledge)

    @staticmethod
    def is_layout(row, content):
        """Whether an item with units differs from its row in nothing but the layout."""
        members = units.parse(content) if row.get("units") is not None else None
        return members is not None and units.edited(row["units"], members, None, None) == row["units"]

    def edited(self, state, modified, before, content):
        """The row of an item that a user has made or changed: as a whole, or some units of one that came with units."""
        version = self.next_version()
        row = {**state, "modified": modified, "deleted": False, "version": version, "units": None,
               "creation": before["creation"] if before else version}
        divided = before and before.get("units") is not None
        if divided and (members := units.parse(content)) is not None:
            row |= {"version": before["version"], "units": units.edited(before["units"], members, version, modified)}
        return row

    def detect(self):
        """Makes versions of what users have changed (R14)."""
        rows, intents, changed, knowledge, seen = self.rows(), self.rows("intents"), {}, self.knowledge, set()

        def adopt(item, file=None):
            nonlocal knowledge
            changed[item] = row = {**intents[item], "file": file}
            vector = {bytes.fromhex(row["version"][0]): row["version"][1]}
            knowledge = knowledge.union(Knowledge({None: [(b"", vector)]}).within(item, item))

        for path in self.directory.iterdir():
            if path.suffix != ".json" or path.name.startswith("."):
                continue
            try:
                item, content, properties, raw = parse(path, path.read_bytes())
            except (ValueError, OSError, KeyError, TypeError):  # half written by an editor, say: not seen, and not deleted
                seen.add(urllib.parse.unquote_to_bytes(path.stem))
                continue
            seen.add(item)
            row, intent = rows.get(item), intents.get(item)
            there = row and not row["deleted"]
            if there and row["file"] == digest(raw):
                continue
            state = {"digest": digest(content), "size": len(content), "properties": properties, "file": digest(raw)}
            same = lambda other: other["digest"] == state["digest"] and other["properties"] == properties
            if intent and not intent["deleted"] and same(intent):
                adopt(item, state["file"])
            elif there and (same(row) or self.is_layout(row, content)):
                changed[item] = {**row, "file": state["file"], "digest": state["digest"], "size": state["size"]}
            else:
                if there and row["digest"] != state["digest"]:
                    properties.pop("mtime", None)  # told when the content before it was made
                changed[item] = self.edited(state, path.stat().st_mtime_ns, row if there else None, content)
        for item in rows.keys() - seen:
            if not rows[item]["deleted"]:
                if item in intents and intents[item]["deleted"]:
                    adopt(item)
                else:
                    changed[item] = {**rows[item], "deleted": True, "file": None, "units": None,
                                     "version": self.next_version()}
        if changed or intents:
            self.commit(changed, knowledge)
            with self.book:
                self.book.execute("DELETE FROM intents")


def parse(path, raw):
    """Id, content and properties of a file."""
    document = json.loads(raw)
    item = urllib.parse.unquote_to_bytes(document.get("id", path.stem))
    content = document["text"].encode() if "text" in document else base64.b64decode(document["base64"], validate=True)
    return item, content, dict(document.get("properties", {})), raw
