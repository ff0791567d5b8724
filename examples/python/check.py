"""Runs a coordinator, two file providers and watch.py, syncs, lets rsync_session.py copy a tree, and checks what the watcher
printed and the syncs did.

Usage: check.py PATH-OF-SYNCLAVE. Needs the generated modules on PYTHONPATH. Prints one line a check and 'N passed, N failed'.
"""
import json
import pathlib
import queue
import subprocess
import sys
import tempfile
import threading

DEADLINE = 60  # seconds for each thing that is waited for

results = []


def check(name, good, shown=""):
    results.append(bool(good))
    print(f"{'ok' if good else 'FAILED'}: {name}" + ("" if good else f": {shown}"), flush=True)


class Process:
    """A process whose stdout is read line by line, without ever blocking for good."""

    def __init__(self, *command):
        self.process = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, text=True)
        self.lines = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.put(line.rstrip("\n"))
        self.lines.put(None)

    def line(self):
        try:
            return self.lines.get(timeout=DEADLINE)
        except queue.Empty:
            return None

    def until(self, wanted):
        """True once that line has come; False when the output ends, or pauses for too long, without it."""
        while (line := self.line()) is not None:
            if line == wanted:
                return True
        return False

    def stop(self):
        self.process.terminate()
        try:
            return self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def check_external(here, scratch, server, watcher):
    """rsync moves the data, and the watch shows it like any other session."""
    source, destination = (scratch / "from").resolve(), (scratch / "to").resolve()
    source.mkdir()
    sizes = [1, 70_000, 3_000_000]
    for size in sizes:
        (source / f"{size}.bin").write_bytes(b"x" * size)
    def rsync(source, destination):
        return subprocess.run(
            [sys.executable, here / "rsync_session.py", server.removeprefix("http://"), source, destination],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=DEADLINE)

    copied = rsync(source, destination)
    check("rsync in an external session ends in sync", copied.returncode == 0, copied.stdout)
    check("and has copied the files", all((destination / f"{size}.bin").stat().st_size == size for size in sizes))
    wanted = f"{source} -> {destination}: SYNC_STATE_IN_SYNC, {len(sizes)} changes, {sum(sizes)} bytes"
    check("the watcher saw it with rsync's numbers", watcher.until(wanted), wanted)
    failed = rsync(source, destination / "1.bin" / "below a file")
    check("an rsync that fails fails its session", failed.returncode == 1 and "SYNC_STATE_IN_ERROR" in failed.stdout,
          failed.stdout)


def main():
    synclave = pathlib.Path(sys.argv[1]).resolve()
    here = pathlib.Path(__file__).resolve().parent
    started = []

    def start(*command):
        started.append(Process(*command))
        return started[-1]

    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        oslo, rome = scratch / "oslo", scratch / "rome"
        oslo.mkdir()
        rome.mkdir()
        (oslo / "letter.txt").write_text("from oslo\n")
        (rome / "reply.txt").write_text("from rome\n")
        try:
            server = start(synclave, "serve", "--listen", "127.0.0.1:0", "--data-dir", scratch / "data").line()
            check("serve prints its address first", server and server.startswith("http://127.0.0.1:"), server)
            ends = [start(synclave, "provider", "file", root).line() for root in (oslo, rome)]
            check("so do the providers", all(end and end.startswith("http://127.0.0.1:") for end in ends), ends)
            if not all(results):
                return
            watcher = start(sys.executable, here / "watch.py", server.removeprefix("http://"))
            sync = subprocess.run([synclave, "operation", "start", *ends, "--wait", "--output", "json", "--server", server],
                                  stdout=subprocess.PIPE, text=True, timeout=DEADLINE)
            check("the operation ends in sync", sync.returncode == 0, sync.returncode)
            operation = json.loads(sync.stdout or "{}").get("operation", {})
            check("and says so", operation.get("state") == "OPERATION_STATE_IN_SYNC", sync.stdout)
            check("both directories have both files",
                  all((root / name).exists() for root in (oslo, rome) for name in ("letter.txt", "reply.txt")))
            routes, seen = {"oslo -> rome": False, "rome -> oslo": False}, []
            while not all(routes.values()):
                line = watcher.line()
                seen.append(line)
                if line is None:
                    break
                for route in routes:
                    routes[route] |= line.startswith(route) and "SYNC_STATE_IN_SYNC" in line
            check("the watcher saw each direction become in sync", all(routes.values()), seen)
            check_external(here, scratch, server, watcher)
        finally:
            ends = [process.stop() for process in reversed(started)]
        check("the server and the providers end in good order", ends[-3:] == [0, 0, 0], ends)


try:
    main()
finally:
    passed = sum(results)
    print(f"{passed} passed, {len(results) - passed} failed")
sys.exit(0 if results and all(results) else 1)
