"""A store, and the book that is kept of it: which version of which item is there, and what the replica knows.

A store is an object with these; an item's mark is any text that changes when the item does, and None where there is none.

    name                               for people
    items()                            (id, Item or None) of all items; None: it is there, and cannot be read now
    get(id)                            the Item, or None
    put(id, content, properties, time) makes or replaces an item, as a whole and durably; its mark
    delete(id)                         the same
"""
import collections
import hashlib
import json
import sqlite3
import threading
import uuid

from synclave.v1 import knowledge_pb2

from . import units
from .knowledge import Knowledge

Item = collections.namedtuple("Item", "content properties modified mark")  # bytes, texts by name, nanoseconds or None, text

SCHEMA = """CREATE TABLE IF NOT EXISTS rows (id BLOB PRIMARY KEY, row TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS intents (id BLOB PRIMARY KEY, row TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value NOT NULL);"""


class Changed(Exception):
    """An item is not what the book says: somebody has just edited it."""


def digest(content):
    return hashlib.sha256(content).hexdigest()


class Replica:
    def __init__(self, store, book):
        self.store, self.lock = store, threading.RLock()
        self.book = sqlite3.connect(book, check_same_thread=False)
        self.book.executescript("PRAGMA synchronous = FULL;" + SCHEMA)
        self.meta = dict(self.book.execute("SELECT key, value FROM meta"))
        if not self.meta:
            self.start_anew()
        self.knowledge = Knowledge.from_wire(knowledge_pb2.Knowledge.FromString(self.meta["knowledge"]))

    def start_anew(self):
        """As a new replica, that has seen nothing yet."""
        self.meta = {"replica": uuid.uuid4().bytes, "incarnation": str(uuid.uuid4()), "tick": 0, "knowledge": b""}
        self.book.executescript("DELETE FROM rows; DELETE FROM intents; DELETE FROM meta;")
        self.commit({}, Knowledge())

    @property
    def id(self):
        return self.meta["replica"]

    def next_version(self, *learned):
        """Above all that the replica knows or is about to learn: of two versions of an item the later is the greater, everywhere."""
        seen = max(knowledge.highest_tick() for knowledge in (self.knowledge, *learned))
        self.meta["tick"] = max(self.meta["tick"], min(seen, 1 << 62)) + 1  # no peer can use ticks up
        return [self.id.hex(), self.meta["tick"]]

    def row(self, item):
        found = self.book.execute("SELECT row FROM rows WHERE id = ?", (item,)).fetchone()
        return found and json.loads(found[0])

    def rows(self, table="rows"):
        """By id, ascending."""
        return {item: json.loads(row) for item, row in self.book.execute(f"SELECT id, row FROM {table} ORDER BY id")}

    def commit(self, rows, knowledge):
        """Rows, knowledge and tick, all or nothing. What was intended for the rows has come to its end."""
        self.knowledge = knowledge.with_tick(self.id, self.meta["tick"])
        wire = self.knowledge.to_wire(knowledge_pb2.Knowledge(), self.id)
        self.meta["knowledge"] = wire.SerializeToString()
        with self.book:
            self.book.executemany("REPLACE INTO rows VALUES (?, ?)", [(item, json.dumps(rows[item])) for item in rows])
            self.book.executemany("DELETE FROM intents WHERE id = ?", [(item,) for item in rows])
            self.book.executemany("REPLACE INTO meta VALUES (?, ?)", self.meta.items())

    def read(self, item, row):
        """The content, when it is what the row says."""
        found = self.store.get(item)
        if found is None or found.mark != row["mark"]:
            raise Changed
        return found.content

    def write(self, item, before, after, content, knowledge):
        """Puts an item in place, or deletes it, and takes it into the book. What was there must be what the book says."""
        found, there = self.store.get(item), before and not before["deleted"]
        if (found and found.mark) != (before["mark"] if there else None):
            raise Changed
        with self.book:  # so that a crash from here on is recognised by content, and not taken for an edit
            self.book.execute("REPLACE INTO intents VALUES (?, ?)", (item, json.dumps(after)))
        if after["deleted"]:
            self.store.delete(item)
        else:
            after["mark"] = self.store.put(item, content, after["properties"], after["modified"])
        self.commit({item: after}, knowledge)

    def edited(self, state, modified, before, content):
        """The row of an item that a user has made or changed: as a whole, or some units of one that came with units."""
        version = self.next_version()
        row = {**state, "modified": modified, "deleted": False, "version": version, "units": None,
               "creation": before["creation"] if before else version}
        if units.is_here(before) and (members := units.parse(content)) is not None:
            row |= {"version": before["version"], "units": units.edited(before["units"], members, version, modified)}
        return row

    def detect(self):
        """Makes versions of what users have changed (R14)."""
        rows, intents, changed, knowledge, seen = self.rows(), self.rows("intents"), {}, self.knowledge, set()

        def adopt(item, mark=None):
            nonlocal knowledge
            changed[item] = row = {**intents[item], "mark": mark}
            vector = {bytes.fromhex(row["version"][0]): row["version"][1]}
            knowledge = knowledge.union(Knowledge({None: [(b"", vector)]}).within(item, item))

        for item, found in self.store.items():
            seen.add(item)
            row, intent = rows.get(item), intents.get(item)
            there = row and not row["deleted"]
            if found is None or there and row["mark"] == found.mark:
                continue
            content, properties = found.content, dict(found.properties)
            state = {"digest": digest(content), "size": len(content), "properties": properties, "mark": found.mark}
            same = lambda other: other["digest"] == state["digest"] and other["properties"] == properties
            if intent and not intent["deleted"] and same(intent):
                adopt(item, found.mark)
            elif there and (same(row) or units.is_layout(row, content)):
                changed[item] = {**row, "mark": found.mark, "digest": state["digest"], "size": state["size"]}
            else:
                if there and row["digest"] != state["digest"]:
                    properties.pop("mtime", None)  # told when the content before it was made
                changed[item] = self.edited(state, found.modified, row if there else None, content)
        for item in rows.keys() - seen:
            if not rows[item]["deleted"]:
                if item in intents and intents[item]["deleted"]:
                    adopt(item)
                else:
                    changed[item] = {**rows[item], "deleted": True, "mark": None, "units": None,
                                     "version": self.next_version()}
        if changed or intents:
            self.commit(changed, knowledge)
            with self.book:
                self.book.execute("DELETE FROM intents")
