"""Syncs one example with a directory through a coordinator, and checks what each side then has.

Usage: check_example.py PATH-OF-SYNCLAVE simple|full NAME COMMAND... The command is run with a path and, after it, an address to
listen on; the first line that it prints is its address. `simple`: the path is a JSON file of names and texts. `full`: it is a
directory of JSON files {"text": …}. Prints one line a check and 'N passed, N failed'.
"""
import json
import os
import pathlib
import queue
import subprocess
import sys
import tempfile
import threading
import urllib.parse

DEADLINE = 120  # seconds for each thing that is waited for

results = []


def check(name, good, shown=""):
    results.append(bool(good))
    print(f"{'ok' if good else 'FAILED'}: {name}" + ("" if good else f": {shown}"), flush=True)


class Process:
    """A process that prints its address first. What it prints after that is read and dropped."""

    def __init__(self, *command):
        environment = {"RUST_LOG": "warn", **os.environ}
        command = [str(word) for word in command]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        first = queue.Queue()
        threading.Thread(target=lambda: [first.put(line) for line in self.process.stdout], daemon=True).start()
        try:
            self.address = first.get(timeout=DEADLINE).strip()
        except queue.Empty:
            self.stop()
            sys.exit(f"{command[0]} printed no address")

    def stop(self):
        self.process.kill()
        self.process.wait()


class Store:
    """What a user sees of an example: names and contents."""

    def __init__(self, kind, scratch):
        self.kind, self.path = kind, scratch / ("store.json" if kind == "simple" else "store")
        if kind == "full":
            self.path.mkdir()

    def items(self):
        if self.kind == "simple":
            return json.loads(self.path.read_text()) if self.path.exists() else {}
        return {urllib.parse.unquote(path.stem): json.loads(path.read_text())["text"]
                for path in self.path.glob("*.json") if not path.name.startswith(".")}

    def set(self, name, text):
        if self.kind == "full":
            path = self.path / f"{urllib.parse.quote(name)}.json"
            return path.write_text(json.dumps({"text": text})) if text is not None else path.unlink()
        items = {**self.items(), name: text}
        self.path.write_text(json.dumps({name: text for name, text in items.items() if text is not None}))


def files(directory):
    return {path.name: path.read_text() for path in directory.iterdir() if path.is_file() and path.suffix == ".json"}


def conformance(synclave, kind, name, command, scratch):
    """Has the conformance kit look at a fresh store: at what it is, and at the provider that is made of it where it is none."""
    fresh = scratch / "fresh"
    fresh.mkdir()
    processes = [Process(*command, fresh if kind == "full" else fresh / "store.json", "127.0.0.1:0")]

    def hold(what, *options):
        kit = [synclave, "provider", "check", processes[-1].address, "--timeout", "30", *options]
        report = subprocess.run(kit, capture_output=True, text=True, timeout=10 * DEADLINE)
        print(report.stdout.strip().rpartition("\n")[2], flush=True)
        check(f"{name}: the conformance kit{what}", report.returncode == 0, report.stdout + report.stderr)

    try:
        if kind == "simple":
            hold(", as a simple store", "--simple")
            provider = [synclave, "provider", "simple", processes[0].address, "--state-dir", fresh / "state"]
            processes.append(Process(*provider))
        hold("")
    finally:
        for process in processes:
            process.stop()


def main(synclave, kind, name, *command):
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        store, directory = Store(kind, scratch), scratch / "files"
        directory.mkdir()
        store.set("stored.json", '{"from": "the store"}')
        (directory / "filed.json").write_text('{"from": "the directory"}')
        (directory / "large.json").write_text(json.dumps("x" * 3_000_000))
        start = lambda: Process(*command, store.path, "127.0.0.1:0")
        example = start()
        server = Process(synclave, "serve", "--listen", "127.0.0.1:0", "--data-dir", scratch / "data")
        provider = Process(synclave, "provider", "file", directory)
        processes = [server, provider]

        def sync():
            """Until in sync; the number of changes that were applied."""
            command = [synclave, "operation", "start", example.address, provider.address, "--wait"]
            command += ["--server", server.address, "--output", "json"]
            ended = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=DEADLINE)
            if ended.returncode != 0:
                return ended.stderr + ended.stdout
            guids = json.loads(ended.stdout)["operation"]["syncGuids"]
            listed = subprocess.run([str(synclave), "session", "list", "--server", server.address, "--output", "json"],
                                    capture_output=True, text=True, timeout=DEADLINE, check=True)
            assert all(guid in listed.stdout for guid in guids)
            return guids

        try:
            first = sync()
            check(f"{name}: the first sync", isinstance(first, list), first)
            check(f"{name}: both sides have three items", store.items() == files(directory) and len(store.items()) == 3,
                  (store.items().keys(), files(directory).keys()))

            store.set("filed.json", '{"edited": "in the store"}')
            store.set("stored.json", None)
            (directory / "new.json").write_text('{"new": "in the directory"}')
            (directory / "large.json").unlink()
            again = sync()
            check(f"{name}: edits and deletions of both sides", isinstance(again, list), again)
            expected = {"filed.json": '{"edited": "in the store"}', "new.json": '{"new": "in the directory"}'}
            check(f"{name}: the store has them", store.items() == expected, store.items())
            check(f"{name}: the directory has them", files(directory) == expected, files(directory))

            store.set("new.json", '{"edited": "in the store"}')
            (directory / "new.json").write_text('{"edited": "in the directory"}')
            conflict = sync()
            check(f"{name}: a conflict", isinstance(conflict, list), conflict)
            kept = sorted(text for found, text in store.items().items() if found.startswith("new"))
            check(f"{name}: keeps both", kept == ['{"edited": "in the directory"}', '{"edited": "in the store"}']
                  and store.items() == files(directory), (store.items(), files(directory)))

            example.stop()
            example = start()
            quiet = sync()
            check(f"{name}: a restarted store goes on", isinstance(quiet, list) and len(quiet) == 2, quiet)
            check(f"{name}: and has what it had", store.items() == files(directory), (store.items(), files(directory)))
            conformance(synclave, kind, name, command, scratch)
        finally:
            for process in [example, *processes]:
                process.stop()
    print(f"{sum(results)} passed, {len(results) - sum(results)} failed")
    return all(results)


if __name__ == "__main__":
    sys.exit(not main(*sys.argv[1:]))
