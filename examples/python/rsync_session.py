"""Runs rsync from one directory to another as an external session of a Synclave coordinator.

rsync moves the data. The coordinator sees to it that neither directory is in two sessions at once, and shows the session in
every watch: rsync's progress, which side failed, and why. See the README for how to generate the modules.

Usage: rsync_session.py HOST:PORT SOURCE DESTINATION [RSYNC-OPTION...]. Exit code: 0 in sync, 1 failed, 3 ended otherwise.
"""
import os
import queue
import re
import subprocess
import sys
import threading
import time
import uuid

import grpc
from google.protobuf.duration_pb2 import Duration
from synclave.v1 import enums_pb2 as enums, session_service_pb2 as sessions, session_state_service_pb2 as state
from synclave.v1 import types_pb2 as types
from synclave.v1.session_service_pb2_grpc import SessionServiceStub
from synclave.v1.session_state_service_pb2_grpc import SessionStateServiceStub

LEASE = 30  # seconds that the coordinator waits for a sign of life before it interrupts the session
PACE = 0.2  # seconds between two reports, at least

# "  1238099 100%  146.38kB/s    0:00:08 (xfr#5, to-chk=169/396)"; within a file without the parentheses.
PROGRESS = re.compile(r"^\s*(\d+)\s+\d+%\s+\S+\s+\S+(?:\s+\((?:xfr#(\d+), )?(?:to|ir)-chk=(\d+)/(\d+)\))?")
DELETED = re.compile(r"^Number of deleted files: (\d+)")
PARTIAL = (23, 24)  # rsync: some files were left out, or vanished on the way


def begin(api, source, destination):
    """Begins the session. The id makes it safe to send the request again when its answer is lost."""
    def member(path):
        # One place, one name: the name is what the coordinator knows a directory by.
        return types.Endpoint(member_name=path if ":" in path else os.path.realpath(path))

    return api.BeginSession(sessions.BeginSessionRequest(
        request_id=str(uuid.uuid4()), kind=enums.SESSION_KIND_EXTERNAL, source=member(source),
        destination=member(destination), lease=Duration(seconds=LEASE)), wait_for_ready=True)


def wait_until_admitted(api, sync_guid):
    """Waits while one of the directories is in another session. Asking keeps the session's lease."""
    while True:
        session = api.RenewSession(sessions.RenewSessionRequest(sync_guid=sync_guid)).session
        if session.state == enums.SYNC_STATE_IN_PROGRESS:
            return
        time.sleep(PACE)


def wait_until_over(api, sync_guid):
    while True:
        session = api.GetSession(sessions.GetSessionRequest(sync_guid=sync_guid)).session
        if session.HasField("end_time"):
            return session
        time.sleep(PACE)


class Rsync:
    """rsync with its output as it comes. The numbers in `totals` never fall."""

    def __init__(self, source, destination, options):
        command = ["rsync", "--archive", "--no-human-readable", "--no-inc-recursive", "--info=progress2,stats1", "--outbuf=L",
                   *options, os.path.join(source, ""), destination]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
                                        env={**os.environ, "LC_ALL": "C"})
        self.totals = {"updates_transferred": 0, "bytes_transferred": 0, "tombstones_generated": 0}
        self.done, self.total = 0, 0
        self.said, self.stopped = "", False
        self.lines = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self._errors = threading.Thread(target=self._listen, daemon=True)
        self._errors.start()

    def _read(self):
        # Progress overwrites itself: text mode gives each carriage return a line of its own.
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def _listen(self):
        for line in self.process.stderr:
            self.said = line.strip() or self.said

    def step(self, seconds):
        """Takes in what rsync printed within so many seconds. False once it is over."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            try:
                line = self.lines.get(timeout=left)
            except queue.Empty:
                return True
            if line is None:
                return False
            if match := PROGRESS.match(line):
                transferred, files, left_over, total = (int(group or 0) for group in match.groups())
                self._raise("bytes_transferred", transferred)
                self._raise("updates_transferred", files)
                if total:
                    self.done, self.total = total - left_over, total
            elif match := DELETED.match(line):
                self._raise("tombstones_generated", int(match[1]))
        return True

    def _raise(self, total, value):
        self.totals[total] = max(self.totals[total], value)

    def stop(self):
        if self.process.poll() is None:
            self.stopped = True
            self.process.terminate()

    def wait(self):
        """rsync's exit code, None when it was stopped, and the last thing that it complained of."""
        code = self.process.wait()
        self._errors.join()
        return (None, "stopped") if self.stopped else (code, self.said)


def move(api, status, begun, rsync):
    """Sees rsync to its end, reporting how far it is; stops it when the session is cancelled."""
    running = True
    while running:
        running = rsync.step(PACE)
        # Each report keeps the lease, also while rsync says nothing.
        status.OnProgress(state.OnProgressRequest(
            token=begun.destination_token, role=enums.SYNC_PROVIDER_ROLE_DESTINATION,
            stage=enums.SYNC_PROGRESS_STAGE_CHANGE_APPLICATION, completed_work=rsync.done, total_work=rsync.total,
            **rsync.totals))
        if status.IsCanceled(state.IsCanceledRequest(token=begun.destination_token)).is_canceled:
            rsync.stop()
    return rsync.wait()


def run(channel, source, destination, options):
    api, status = SessionServiceStub(channel), SessionStateServiceStub(channel)
    begun = begin(api, source, destination)
    sync_guid = begun.session.sync_guid
    print(f"session {sync_guid}", flush=True)
    rsync = None
    try:
        wait_until_admitted(api, sync_guid)
        rsync = Rsync(source, destination, options)
        code, said = move(api, status, begun, rsync)
    except KeyboardInterrupt:
        code, said = None, "stopped by Ctrl-C"
    finally:
        # Also when the session is lost: another one may be at these directories any moment.
        if rsync:
            rsync.stop()
            rsync.wait()

    failed = code is not None and code > 0 and code not in PARTIAL
    if failed:
        # rsync's last line names its half that failed: "... [sender=3.2.7]".
        token = begun.source_token if "[sender" in said else begun.destination_token
        status.SetProviderWithError(state.SetProviderWithErrorRequest(
            token=token, caller_at_fault=True, message=f"rsync ended with {code}: {said}"))
        session = wait_until_over(api, sync_guid)
    else:
        session = api.EndSession(sessions.EndSessionRequest(sync_guid=sync_guid, in_sync=code == 0)).session
    moved = f", {rsync.totals['updates_transferred']} files, {rsync.totals['bytes_transferred']} bytes" if rsync else ""
    print(enums.SyncState.Name(session.state) + moved + (f": {said}" if said else ""), flush=True)
    return 0 if session.state == enums.SYNC_STATE_IN_SYNC else 1 if failed else 3


def main():
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    server, source, destination, *options = sys.argv[1:]
    with grpc.insecure_channel(server) as channel:
        try:
            return run(channel, source, destination, options)
        except grpc.RpcError as error:
            print(f"{server}: {error.code().name}: {error.details()}", file=sys.stderr)
            return 1


if __name__ == "__main__":
    sys.exit(main())
