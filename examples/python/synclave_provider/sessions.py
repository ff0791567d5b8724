"""Who is in which session: leases, epochs, and an end that waits for all work. One session at a time.

A refusal carries google.rpc.ErrorInfo: by it a coordinator knows that nothing was done.
"""
import contextlib
import dataclasses
import threading
import time
import uuid

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

CODES = {"E_INVALIDARG": 0x80070057, "E_NOTIMPL": 0x80004001, "E_ABORT": 0x80004004, "E_FAIL": 0x80004005,
         "SYNC_E_INVALID_OPERATION": 0x80041001, "SYNC_E_REPLICA_NOT_FOUND": 0x80041002,
         "SYNC_E_CHANGE_NOT_IN_KNOWLEDGE": 0x80041006, "SYNC_E_ITEM_MUST_EXIST": 0x80041007,
         "SYNC_E_HAS_NO_DATA": 0x80041008, "SYNC_E_CHANGE_NEEDS_KNOWLEDGE": 0x80041009,
         "SYNC_E_NOT_EXPECTED_CHANGE": 0x8004100B, "SYNC_E_ITEM_HAS_NO_CHANGE_UNITS": 0x8004100F,
         "SYNC_E_ITEM_HAS_CHANGE_UNITS": 0x8004100E,
         "SYNC_E_DATA_MODIFIED_CONCURRENTLY": 0x8004101F, "SYNC_E_FORGOTTEN_KNOWLEDGE_NOT_CONTAINED": 0x80041025}
REMEMBER = 600  # seconds for which an ended session is remembered, so that a BeginSession that was overtaken is refused


class Refused(Exception):
    """Ends a call before it has done anything."""

    def __init__(self, code, reason, message):
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message

    def status(self):
        ours = not self.reason.startswith(("SYNC_E_", "E_"))
        hresult = CODES.get(self.reason, CODES["E_FAIL"])
        info = error_details_pb2.ErrorInfo(reason=self.reason, domain="synclave" if ours else "winsync",
                                           metadata={"hresult": f"0x{hresult:08X}"})
        details = any_pb2.Any()
        details.Pack(info)
        code, _ = self.code.value
        return rpc_status.to_status(status_pb2.Status(code=code, message=self.message, details=[details]))


def invalid(message):
    return Refused(grpc.StatusCode.INVALID_ARGUMENT, "E_INVALIDARG", message)


def not_in(guid):
    message = f"not in session {guid}: begin it first"
    return Refused(grpc.StatusCode.FAILED_PRECONDITION, "SYNC_E_INVALID_OPERATION", message)


@dataclasses.dataclass
class Session:
    guid: str
    epoch: int
    role: int
    lease: float
    deadline: float
    work: int = 0
    ending: bool = False
    canceled: threading.Event = dataclasses.field(default_factory=threading.Event)
    replicas: list = dataclasses.field(default_factory=list)  # those of the batch that was sent last
    made_with: object = None  # the knowledge of that batch
    applied: int = 0

    def heard(self):
        self.deadline = time.monotonic() + self.lease

    def check(self):
        if self.canceled.is_set():
            raise Refused(grpc.StatusCode.CANCELLED, "E_ABORT", "the session was cancelled")


class Sessions:
    def __init__(self):
        self.current, self.ended, self.changed = None, {}, threading.Condition()

    def begin(self, request, prepare):
        """Joins a session; `prepare` is run as its first work."""
        guid, epoch = guid_of(request.session.sync_guid), request.session.epoch
        lease = request.session.lease.ToNanoseconds() / 1e9
        if not request.HasField("role") or request.role not in (0, 1) or lease <= 0 or epoch < 1:
            raise invalid("role, session.epoch and session.lease are required")
        with self.changed:
            now, current = time.monotonic(), self.current
            self.ended = {ended: entry for ended, entry in self.ended.items() if entry[1] > now}
            seen = current.epoch if current and current.guid == guid else self.ended.get(guid, (None,))[0]
            if seen is not None:
                check_epoch(guid, epoch, seen)
                raise Refused(grpc.StatusCode.FAILED_PRECONDITION, "SYNC_E_INVALID_OPERATION",
                              f"session {guid} has begun already or is over")
            if current and current.deadline < now:
                self._finish(current)
            if self.current:
                raise Refused(grpc.StatusCode.UNAVAILABLE, "BUSY", "in another session; try again when it has ended")
            session = self.current = Session(guid, epoch, request.role, lease, float("inf"), work=1)
        try:
            prepare()
        except BaseException:
            with self.changed:
                self.current = None
                self.changed.notify_all()
            raise
        self._leave(session)
        session.heard()

    @contextlib.contextmanager
    def enter(self, request, role=None):
        """The session of a call, which cannot end before the call does."""
        guid = guid_of(request.sync_guid)
        with self.changed:
            session = self.current
            if not session or session.guid != guid:
                raise not_in(guid)
            check_epoch(guid, request.epoch, session.epoch)
            if session.ending or session.deadline < time.monotonic():
                raise not_in(guid)
            if role is not None:
                if session.role != role:
                    raise Refused(grpc.StatusCode.FAILED_PRECONDITION, "SYNC_E_INVALID_OPERATION",
                                  f"in session {guid} this provider has the other role")
                session.check()
            session.epoch = request.epoch
            session.heard()
            session.work += 1
        try:
            yield session
        finally:
            self._leave(session)

    def end(self, request):
        guid = guid_of(request.sync_guid)
        with self.changed:
            session = self.current
            if not session or session.guid != guid:
                seen = self.ended.get(guid, (request.epoch,))[0]
                self.ended[guid] = (max(seen, request.epoch), time.monotonic() + REMEMBER)
                check_epoch(guid, request.epoch, seen)
                raise not_in(guid)
            check_epoch(guid, request.epoch, session.epoch)
            self._finish(session)

    def _finish(self, session):
        session.ending = True
        session.canceled.set()
        self.changed.wait_for(lambda: session.work == 0)
        self.ended[session.guid] = (session.epoch, time.monotonic() + max(session.lease, REMEMBER))
        if self.current is session:
            self.current = None

    def _leave(self, session):
        with self.changed:
            session.work -= 1
            self.changed.notify_all()


def guid_of(text):
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise invalid("sync_guid is no GUID") from None


def check_epoch(guid, epoch, seen):
    if epoch < seen:
        raise Refused(grpc.StatusCode.ABORTED, "STALE_EPOCH", f"session {guid} was taken over: epoch {seen} was seen")
