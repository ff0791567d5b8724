"""A directory, a SQLite table and both example providers in Python in one group: random histories through a coordinator.

Usage: check_group.py PATH-OF-SYNCLAVE [SEED...]. Users edit single members of items, delete and create items in all four stores,
with sessions of any two in between. At the end all four must hold the same items, without anything lost that a user wrote, and
another round must move nothing. Prints one line a history and 'N passed, N failed'.
"""
import json
import pathlib
import random
import sqlite3
import subprocess
import sys
import tempfile

from check_example import DEADLINE, Process, Store

EXAMPLES = pathlib.Path(__file__).parent / "python"
NAMES, MEMBERS = ["bolt", "gear", "nut", "screw"], ["note", "place", "quantity"]
STEPS = 40  # edits and sessions of a history
ROUNDS = 8  # of all pairs, until nothing moves any more


class Texts:
    """An example in Python: items are texts, and here they are JSON."""

    def __init__(self, kind, scratch):
        self.store = Store(kind, scratch)

    def items(self):
        return {name: json.loads(text) for name, text in self.store.items().items()}

    def set(self, name, item, indent):
        self.store.set(name, item and json.dumps(item, indent=indent))


class Files:
    def __init__(self, path):
        self.path = path
        path.mkdir()

    def items(self):
        return {path.name: json.loads(path.read_text()) for path in self.path.iterdir() if path.is_file()}

    def set(self, name, item, indent):
        path = self.path / name
        path.write_text(json.dumps(item, indent=indent)) if item else path.unlink()


class Table:
    def __init__(self, path):
        self.database = sqlite3.connect(path, timeout=DEADLINE, isolation_level=None)
        self.database.execute("CREATE TABLE parts (name TEXT PRIMARY KEY, note TEXT, place TEXT, quantity INTEGER)")

    def items(self):
        rows = self.database.execute(f"SELECT name, {', '.join(MEMBERS)} FROM parts").fetchall()
        return {name: dict(zip(MEMBERS, values)) for name, *values in rows}

    def set(self, name, item, indent):
        if item is None:
            self.database.execute("DELETE FROM parts WHERE name = ?", (name,))
            return
        self.database.execute("INSERT OR IGNORE INTO parts (name) VALUES (?)", (name,))
        for member, value in item.items():  # only the columns that change are named, as an application does
            self.database.execute(f"UPDATE parts SET {member} = ?1 WHERE name = ?2 AND {member} IS NOT ?1", (value, name))


def values(items):
    return {str(value) for item in items for value in item.values() if value is not None}


class Group:
    def __init__(self, synclave, seed, scratch):
        self.synclave, self.random, self.written, self.taken = synclave, random.Random(seed), set(), set()
        self.processes = []
        self.server = self.start(synclave, "serve", "--listen", "127.0.0.1:0", "--data-dir", scratch / "data")
        files, table = Files(scratch / "files"), Table(scratch / "parts.db")
        simple, full = Texts("simple", scratch), Texts("full", scratch)
        simple_store = self.start(sys.executable, EXAMPLES / "simple_provider.py", simple.store.path)
        self.members = [
            (files, self.start(synclave, "provider", "file", files.path)),
            (table, self.start(synclave, "provider", "sqlite", scratch / "parts.db", "--table", "parts")),
            (simple, self.start(synclave, "provider", "simple", simple_store, "--state-dir", scratch / "state")),
            (full, self.start(sys.executable, EXAMPLES / "json_provider.py", full.store.path)),
        ]

    def start(self, *command):
        self.processes.append(Process(*command))
        return self.processes[-1].address

    def stop(self):
        for process in self.processes:
            process.stop()

    def run(self, *words):
        command = [str(self.synclave), *words, "--server", self.server, "--output", "json"]
        return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)

    def value(self, member):
        number = len(self.written) + 1
        self.written.add(str(value := number if member == "quantity" else f"{member} {number}"))
        return value

    def edit(self):
        """A user creates an item, changes one member of it, or deletes it."""
        store, _ = self.random.choice(self.members)
        before = store.items()
        name = self.random.choice(sorted(before) + NAMES)  # of copies of conflicts too
        if name not in before:
            item = {member: self.value(member) for member in MEMBERS}
        elif self.random.random() < 0.2:
            item = None
        else:
            member = self.random.choice(MEMBERS)
            item = before[name] | {member: None if self.random.random() < 0.15 else self.value(member)}
        store.set(name, item, self.random.choice([None, None, 2]))
        # Of this item: a copy of it may hold the value as well, until a user takes it from there too.
        self.taken |= values([before.get(name) or {}]) - values([item or {}])

    def sync_some(self):
        (_, source), (_, destination) = self.random.sample(self.members, 2)
        what = self.random.choice([("session", "begin"), ("operation", "start")])
        ended = self.run(*what, source, destination, "--wait")
        assert ended.returncode in (0, 3), ended.stderr  # 3: something is left for a further session

    def round(self):
        """All pairs in an order of its own, until in sync; the number of changes that were applied."""
        pairs = [(one, other) for at, one in enumerate(self.members) for other in self.members[:at]]
        self.random.shuffle(pairs)
        moved = 0
        for pair in pairs:
            (_, source), (_, destination) = self.random.sample(pair, 2)
            ended = self.run("operation", "start", source, destination, "--wait")
            assert ended.returncode == 0, ended.stderr + ended.stdout
            operation = json.loads(ended.stdout)["operation"]
            shown = self.run("watch", "--operation", operation["operationId"], "--once")
            entries = [entry for line in shown.stdout.splitlines()
                       for entry in json.loads(line).get("changes", {}).get("entries", [])]
            assert len(entries) == len(operation["syncGuids"]), shown.stdout + shown.stderr
            moved += sum(int(entry["syncInfo"]["dfsrSyncInfo"]["updatesTransferred"]) for entry in entries)
        return moved

    def history(self):
        for _ in range(STEPS):
            self.edit() if self.random.random() < 0.65 else self.sync_some()
        assert any(self.round() == 0 for _ in range(ROUNDS)), "does not come to rest"
        items = [store.items() for store, _ in self.members]
        assert all(other == items[0] for other in items[1:]), f"they differ: {items}"
        lost = self.written - values(items[0].values()) - self.taken
        assert not lost, f"lost without a user's word: {lost} of {items[0]}"
        assert self.round() == 0, "updates when nothing has changed"


    def units(self):
        """A row's columns are change units in the whole provider too: edits of different members are no conflict."""
        (table, at_table), (full, at_full) = self.members[1], self.members[3]
        sync = lambda: self.run("operation", "start", at_table, at_full, "--conflict", "destination-wins", "--wait")
        item = dict(zip(MEMBERS, ["as it was", "here", 1]))
        table.set("bolt", item, None)
        assert sync().returncode == 0 and full.items() == {"bolt": item}, full.items()
        table.set("bolt", item | {"note": "of the table"}, None)
        full.set("bolt", item | {"quantity": 2}, 2)
        expected = {"bolt": item | {"note": "of the table", "quantity": 2}}
        assert sync().returncode == 0 and table.items() == full.items() == expected, (table.items(), full.items())
        table.set("bolt", None, None)
        full.set("bolt", expected["bolt"] | {"place": "there"}, None)
        ended = self.run("operation", "start", at_table, at_full, "--wait")
        expected["bolt"]["place"] = "there"
        assert ended.returncode == 0 and table.items() == full.items() == expected, (table.items(), full.items())


def main(synclave, *seeds):
    failed, seeds = 0, seeds or ("0", "1")
    for seed in [None, *seeds]:
        what = "two members of a row" if seed is None else f"files, a table and two stores in Python, history {seed}"
        with tempfile.TemporaryDirectory() as scratch:
            group = Group(synclave, int(seed or 0), pathlib.Path(scratch))
            try:
                group.units() if seed is None else group.history()
                print(f"ok: {what}", flush=True)
            except AssertionError as error:
                failed += 1
                print(f"FAILED: {what}: {error}", flush=True)
            finally:
                group.stop()
    print(f"{len(seeds) + 1 - failed} passed, {failed} failed")
    return failed == 0


if __name__ == "__main__":
    sys.exit(not main(*sys.argv[1:]))
