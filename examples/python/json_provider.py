"""A whole provider in Python, for a directory of JSON files. See README.md beside it.

Usage: json_provider.py DIRECTORY [HOST:PORT]. The first line that it prints is its address.
"""
import concurrent.futures
import functools
import hashlib
import inspect
import pathlib
import queue
import sys
import threading
import uuid

import grpc
from json_store import Changed, Store, digest
from knowledge import Knowledge
from sessions import CODES, Refused, Sessions, invalid
from settle import copy_name, settle
from synclave.v1 import change_batch_pb2 as data, enums_pb2 as enums, knowledge_pb2, knowledge_sync_provider_service_pb2 as pb
from synclave.v1.knowledge_sync_provider_service_pb2_grpc import (
    KnowledgeSyncProviderServiceServicer, add_KnowledgeSyncProviderServiceServicer_to_server)

CHUNK, SLACK = 256 * 1024, 64 * 1024  # bytes of content in a message; bytes that a batch leaves for what is not a change
SOURCE, DESTINATION = enums.SYNC_PROVIDER_ROLE_SOURCE, enums.SYNC_PROVIDER_ROLE_DESTINATION


class ItemError(Exception):
    """One item cannot be carried over; the others go on."""

    def __init__(self, reason, message):
        super().__init__(message)
        self.reason = reason

    def to_wire(self, item):
        return data.RecoverableError(hresult=CODES[self.reason], item_display_name=item.decode(errors="replace"),
                                     error_description=str(self))


def answering(method):
    """A call whose refusals become statuses with ErrorInfo. A malformed message is a ValueError."""
    def stop(context, error):
        context.abort_with_status((error if isinstance(error, Refused) else invalid(str(error))).status())

    @functools.wraps(method)
    def call(self, request, context):
        try:
            return method(self, request, context)
        except (Refused, ValueError) as error:
            stop(context, error)

    @functools.wraps(method)
    def stream(self, request, context):
        try:
            yield from method(self, request, context)
        except (Refused, ValueError) as error:
            stop(context, error)
    return stream if inspect.isgeneratorfunction(method) else call


def required(message, *fields):
    for field in fields:
        if not message.HasField(field):
            raise ValueError(f"{message.DESCRIPTOR.name}.{field}: is missing")


def version_of(version, replicas):
    if version.replica_key >= len(replicas) or not 0 < version.tick_count < 1 << 63:
        raise ValueError("a version is not of the batch's replica_ids, or has no tick")
    return [replicas[version.replica_key].hex(), version.tick_count]


class Provider(KnowledgeSyncProviderServiceServicer):
    def __init__(self, store):
        self.store, self.sessions, self.instance, self.went_back = store, Sessions(), str(uuid.uuid4()), False

    @answering
    def GetIdParameters(self, request, context):
        pair = knowledge_pb2.IdParameterPair
        schema = knowledge_pb2.IdParameters(replica_id=pair(id_size=16), item_id=pair(is_variable=True, id_size=4096),
                                            change_unit_id=pair(is_variable=True, id_size=255))
        return pb.GetIdParametersResponse(id_parameters=schema, replica_id=self.store.replica, instance_id=self.instance,
                                          member_name=self.store.directory.name, incarnation_id=self.store.meta["incarnation"],
                                          limits=pb.ProviderLimits(max_source_sessions=1))

    @answering
    def BeginSession(self, request, context):
        def prepare():
            with self.store.lock:
                if self.went_back:
                    self.store.start_anew()
                    self.went_back = False
                self.store.detect()
        self.sessions.begin(request, prepare)
        return pb.KnowledgeSyncProviderServiceBeginSessionResponse()

    @answering
    def RenewSession(self, request, context):
        with self.sessions.enter(request) as session:
            session.lease = request.lease.ToNanoseconds() / 1e9 or session.lease
            session.heard()
            if request.canceled:
                session.canceled.set()
            response = pb.KnowledgeSyncProviderServiceRenewSessionResponse()
            response.progress.role = session.role
            response.progress.stage = enums.SYNC_PROGRESS_STAGE_CHANGE_APPLICATION
            if session.role == DESTINATION:
                response.progress.updates_transferred = session.applied
            return response

    @answering
    def EndSession(self, request, context):
        self.sessions.end(request)
        return pb.KnowledgeSyncProviderServiceEndSessionResponse()

    @answering
    def GetSyncBatchParameters(self, request, context):
        with self.sessions.enter(request, DESTINATION), self.store.lock:
            response = pb.GetSyncBatchParametersResponse(requested_batch_size=500)
            self.store.knowledge.to_wire(response.knowledge, self.store.replica)
            return response

    @answering
    def GetChangeBatch(self, request, context):
        """One ordered group from the beginning on: what the destination has, or has been skipped, it does not know to lack."""
        required(request, "destination_knowledge")
        with self.sessions.enter(request, SOURCE) as session, self.store.lock:
            known, store = Knowledge.from_wire(request.destination_knowledge, "destination_knowledge"), self.store
            self.check_own_tick(known)
            rows = {item: row for item, row in store.rows().items()
                    if not known.has(item, (bytes.fromhex(row["version"][0]), row["version"][1]))}
            versions = [row[key][0] for row in rows.values() for key in ("version", "creation")]
            replicas = [store.replica] + sorted({bytes.fromhex(replica) for replica in versions} - {store.replica})
            batch = data.ChangeBatch(replica_ids=replicas, prerequisite_knowledge=request.destination_knowledge)
            Knowledge().to_wire(batch.forgotten_knowledge, store.replica)
            group = batch.groups.add(ordered=data.OrderedGroup())
            store.knowledge.to_wire(group.made_with_knowledge, store.replica)
            room = min(request.max_bytes or 4 << 20, 4 << 20) - SLACK - batch.ByteSize()
            wire = lambda version: knowledge_pb2.Version(replica_key=replicas.index(bytes.fromhex(version[0])),
                                                         tick_count=version[1])
            for item, row in rows.items():
                change = data.ItemChange(item_id=item, creation_version=wire(row["creation"]), work_estimate=1,
                                         change_version=wire(row["version"]), flags=1 if row["deleted"] else 0)
                if not row["deleted"]:
                    change.data_size, change.content_digest = row["size"], bytes.fromhex(row["digest"])
                    if row["modified"] is not None:
                        change.modification_time.FromNanoseconds(row["modified"])
                room -= change.ByteSize() + 8
                if group.changes and (room < 0 or len(group.changes) >= (request.requested_batch_size or 500)):
                    group.ordered.upper_bound = group.changes[-1].item_id
                    break
                group.changes.append(change)
            batch.work_estimate = len(group.changes)
            batch.remaining_work_estimate = batch.remaining_updates = len(rows) - len(group.changes)
            batch.is_last_batch = batch.remaining_updates == 0
            session.replicas = replicas
            return pb.GetChangeBatchResponse(batch=batch)

    @answering
    def LoadChangeData(self, request, context):
        with self.sessions.enter(request, SOURCE) as session:
            version = version_of(request.version, session.replicas)
            try:
                with self.store.lock:
                    row = self.store.row(request.item_id)
                    if not row or row["deleted"]:
                        raise ItemError("SYNC_E_HAS_NO_DATA", "there is no data: the item is deleted or unknown here")
                    if row["version"] != version:
                        raise Changed
                    content = self.store.read(request.item_id, row)
            except Changed:
                error = ItemError("SYNC_E_DATA_MODIFIED_CONCURRENTLY", "it has changed since it was listed")
                yield pb.LoadChangeDataResponse(recoverable_error=error.to_wire(request.item_id))
            except ItemError as error:
                yield pb.LoadChangeDataResponse(recoverable_error=error.to_wire(request.item_id))
            else:
                sha256 = hashlib.sha256(content).digest()
                yield pb.LoadChangeDataResponse(header=data.ItemDataHeader(
                    properties=row["properties"], content_size=len(content), content_digest=sha256))
                for at in range(request.offset, len(content), CHUNK):
                    session.check()
                    session.heard()
                    yield pb.LoadChangeDataResponse(chunk=content[at:at + CHUNK])
                yield pb.LoadChangeDataResponse(end=data.ItemDataEnd(content_digest=sha256))

    @answering
    def ProcessChangeBatch(self, requests, context):
        start, batch = (next(requests, pb.ProcessChangeBatchRequest()) for _ in range(2))
        if start.WhichOneof("frame") != "start" or batch.WhichOneof("frame") != "batch":
            raise ValueError("frame: must be start, then batch")
        with self.sessions.enter(start.start, DESTINATION) as session:
            yield from Application(self, session, start.start, batch.batch, requests).run()

    @answering
    def GetFullEnumerationChangeBatch(self, request, context):
        raise Refused(grpc.StatusCode.UNIMPLEMENTED, "FULL_ENUMERATION", "FULL_ENUMERATION is not offered")

    @answering
    def ProcessFullEnumerationChangeBatch(self, requests, context):
        yield from ()
        raise Refused(grpc.StatusCode.UNIMPLEMENTED, "FULL_ENUMERATION", "FULL_ENUMERATION is not offered")

    def check_own_tick(self, *knowledges):
        """A partner that knows more of this replica than there is has met it before it was restored, or a clone of it."""
        if any(knowledge.max_tick(self.store.replica) > self.store.meta["tick"] for knowledge in knowledges):
            self.went_back = True
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, "REPLICA_WENT_BACK",
                          "this replica was restored or cloned: it takes a new id, begin another session")


class Application:
    """One batch, applied change by change: each is durable, and known, before it is reported."""

    def __init__(self, provider, session, start, batch, requests):
        self.store, self.session, self.batch, self.policy = provider.store, session, batch, start.conflict_resolution_policy
        required(start, "conflict_resolution_policy", "full_enumeration_action")
        required(batch, "prerequisite_knowledge")
        for group in batch.groups:
            required(group, "made_with_knowledge")
            if not group.WhichOneof("kind"):
                raise ValueError("groups.kind: is missing")
        if self.policy not in (0, 1, 2, 16, 17):
            raise ValueError("start.conflict_resolution_policy: is none of the policies")
        if any(len(replica) != 16 for replica in batch.replica_ids):
            raise ValueError("batch.replica_ids: must have 16 bytes")
        self.known, self.loads, self.inputs = self.store.knowledge, 0, queue.SimpleQueue()
        self.prerequisite = Knowledge.from_wire(batch.prerequisite_knowledge, "prerequisite_knowledge")
        self.made_with = [Knowledge.from_wire(group.made_with_knowledge, "made_with_knowledge") for group in batch.groups]
        for change in (change for group in batch.groups for change in group.changes):
            if not 0 < len(change.item_id) <= 4096 or change.flags & ~7:
                raise ValueError("changes: an item_id does not fit the schema, or flags are unknown")
            if change.change_units and (change.flags & 1 or change.HasField("change_version")):
                raise ValueError("changes.change_units: must be none of a deletion, nor beside a change_version")
            if len(change.content_digest) not in (0, 32):
                raise ValueError("changes.content_digest: must have 32 bytes")
            versions = [unit.version for unit in change.change_units] or [change.change_version]
            for version in [change.creation_version, *versions]:
                version_of(version, batch.replica_ids)
        forgotten = Knowledge.from_wire(batch.forgotten_knowledge, "forgotten_knowledge")
        provider.check_own_tick(self.prerequisite, forgotten, *self.made_with)
        if not self.known.contains(forgotten):
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, "SYNC_E_FORGOTTEN_KNOWLEDGE_NOT_CONTAINED",
                          "this replica is out of date: the source has forgotten deletions that it has not seen")
        threading.Thread(target=self.listen, args=(requests,), daemon=True).start()

    def listen(self, requests):
        try:
            for request in requests:
                self.inputs.put(request)
        except grpc.RpcError:
            pass
        self.inputs.put(None)

    def run(self):
        applied = failed = 0
        for group, made_with in zip(self.batch.groups, self.made_with):
            left_out = []
            for change in group.changes:
                self.session.check()
                outcome = data.ChangeOutcome(item_id=change.item_id, tombstone=bool(change.flags & 1))
                try:
                    yield from self.apply(group, made_with, change, left_out, outcome)
                except (ItemError, Changed, OSError) as error:
                    if not isinstance(error, ItemError):
                        error = ItemError("SYNC_E_DATA_MODIFIED_CONCURRENTLY" if isinstance(error, Changed) else "E_FAIL",
                                          str(error) or "it has changed while it was being synced")
                    outcome.outcome = enums.CHANGE_OUTCOME_KIND_RECOVERABLE_ERROR
                    outcome.recoverable_error.CopyFrom(error.to_wire(change.item_id))
                    failed += 1
                if outcome.outcome in (enums.CHANGE_OUTCOME_KIND_RECOVERABLE_ERROR, enums.CHANGE_OUTCOME_KIND_DEFERRED):
                    left_out.append(change.item_id)
                applied += outcome.outcome == enums.CHANGE_OUTCOME_KIND_APPLIED
                self.session.applied += outcome.outcome == enums.CHANGE_OUTCOME_KIND_APPLIED
                self.session.heard()
                yield pb.ProcessChangeBatchResponse(outcome=outcome)
            with self.store.lock:
                self.store.commit({}, self.store.knowledge.union(self.learned(group, made_with, left_out)))
        response = pb.ProcessChangeBatchResponse()
        response.result.statistics.changes_applied, response.result.statistics.changes_failed = applied, failed
        self.store.knowledge.to_wire(response.result.learned_knowledge, self.store.replica)
        yield response

    def learned(self, group, made_with, left_out, last=None):
        """What the group teaches: all of it, or as far as `last`; never what was left out, nor what rests on what is missing."""
        if group.WhichOneof("kind") == "ordered":
            upper = group.ordered.upper_bound if group.ordered.HasField("upper_bound") else None
            learned = made_with.within(group.ordered.lower_bound, upper if last is None else last)
        elif last is None and group.unordered.all_changes_for_knowledge:
            learned = made_with
        else:
            items = [change.item_id for change in group.changes] if last is None else [last]
            learned = functools.reduce(Knowledge.union, (made_with.within(item, item) for item in items), Knowledge())
        learned = functools.reduce(Knowledge.without, left_out, learned)
        return learned.where(self.prerequisite, self.known)

    def apply(self, group, made_with, change, left_out, outcome):
        item, replicas, store = change.item_id, self.batch.replica_ids, self.store
        if change.change_units:
            raise ItemError("SYNC_E_ITEM_HAS_CHANGE_UNITS", "items with change units are not offered")
        theirs = {"version": version_of(change.change_version, replicas), "deleted": bool(change.flags & 1), "file": None,
                  "creation": version_of(change.creation_version, replicas), "properties": {}, "digest": digest(b""), "size": 0,
                  "modified": change.modification_time.ToNanoseconds() if change.HasField("modification_time") else None}
        version = (bytes.fromhex(theirs["version"][0]), theirs["version"][1])
        if not made_with.has(item, version):
            raise ItemError("SYNC_E_CHANGE_NOT_IN_KNOWLEDGE", "its version is not in the source's knowledge")
        if self.known.has(item, version):
            outcome.outcome = enums.CHANGE_OUTCOME_KIND_OBSOLETE
            return
        if not self.known.within(item, item).contains(self.prerequisite.within(item, item)):
            raise ItemError("SYNC_E_CHANGE_NEEDS_KNOWLEDGE", "an earlier change of it was left out")
        content = b""
        if not theirs["deleted"]:
            header, content = (change.inline_data.header, change.inline_data.content) if change.HasField("inline_data") \
                else (yield from self.load(change))
            theirs |= {"properties": dict(header.properties), "digest": digest(content), "size": len(content)}
            announced = {change.content_digest or None, header.content_digest or None} - {None, bytes.fromhex(theirs["digest"])}
            if announced or header.content_size != len(content) or change.data_size not in (len(content), 0):
                raise ItemError("SYNC_E_DATA_MODIFIED_CONCURRENTLY", "the content that came is not what was announced")
        with store.lock:
            row = store.row(item)
            winner, version, conflict = settle(change, theirs, made_with, self.known, row, self.policy)
            loser, name = (row, None) if winner.startswith("SOURCE") else (theirs, None)
            if winner.endswith("+COPY"):
                name = self.copy_of(item, loser)
                winner = winner.removesuffix("+COPY") if name != "" else "DEFERRED"
            outcome.conflict = conflict
            if winner == "MUST_EXIST":
                raise ItemError("SYNC_E_ITEM_MUST_EXIST", "its creation is known here, but the item is not")
            if winner == "DEFERRED":
                outcome.outcome = enums.CHANGE_OUTCOME_KIND_DEFERRED
                return self.describe(item, row, outcome.destination_change)
            if name:  # the loser first: it must be kept before anything takes its place
                kept = content if loser is theirs else store.read(item, row)
                copy = store.next_version()
                after = {**loser, "deleted": False, "version": copy, "creation": copy}
                store.write(name, store.row(name), after, kept, store.knowledge)
            knowledge = store.knowledge.union(self.learned(group, made_with, left_out, item))
            version = version or store.next_version()
            if winner == "DESTINATION":
                store.commit({item: {**row, "version": version}}, knowledge)
            elif theirs["deleted"] and (row is None or row["deleted"]):
                store.commit({item: {**(row or theirs), "version": version}}, knowledge)
            else:
                kept = row if theirs["deleted"] else theirs
                store.write(item, row, {**kept, "deleted": theirs["deleted"], "version": version}, content, knowledge)
            outcome.outcome = enums.CHANGE_OUTCOME_KIND_APPLIED

    def copy_of(self, item, loser):
        """A free name for the loser; None when one has its content already; empty when there is none."""
        listed = {change.item_id for group in self.batch.groups for change in group.changes}
        for attempt in range(1, 1_000):
            name = copy_name(item, loser, attempt)
            if name is None:
                return ""
            row = self.store.row(name)
            if name not in listed and (not row or row["deleted"]):
                return name
            if name not in listed and row["digest"] == loser["digest"]:
                return None
        return ""

    def describe(self, item, row, wire):
        wire.item_id, wire.deleted = item, row["deleted"]
        wire.change_version.replica_id, wire.change_version.tick_count = bytes.fromhex(row["version"][0]), row["version"][1]
        if not row["deleted"]:
            wire.data_size, wire.content_digest = row["size"], bytes.fromhex(row["digest"])

    def load(self, change):
        """Header and content of an item, from the source."""
        self.loads += 1
        load = pb.ProcessLoad(load_id=self.loads, item_id=change.item_id, version=change.change_version)
        yield pb.ProcessChangeBatchResponse(load=load)
        header, content = None, bytearray()
        while True:
            part = yield from self.receive()
            kind = part.WhichOneof("part")
            if part.load_id != self.loads or (kind == "header") != (header is None) and kind != "recoverable_error":
                raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "SYNC_E_NOT_EXPECTED_CHANGE", "data came out of order")
            if kind == "header":
                header = part.header
            elif kind == "chunk":
                content += part.chunk
                if len(content) > header.content_size:
                    raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "SYNC_E_NOT_EXPECTED_CHANGE", "data longer than announced")
            elif kind == "end":
                if hashlib.sha256(content).digest() != part.end.content_digest:
                    raise ItemError("SYNC_E_DATA_MODIFIED_CONCURRENTLY", "the content that came is not what was announced")
                return header, bytes(content)
            else:
                raise ItemError("E_FAIL", part.recoverable_error.error_description or "the source cannot give it now")

    def receive(self):
        """The next part of data; signs of life while it is waited for."""
        for waited in range(1, sys.maxsize):
            self.session.check()
            try:
                request = self.inputs.get(timeout=0.2)
            except queue.Empty:
                if waited % 25 == 0:
                    yield pb.ProcessChangeBatchResponse(progress=pb.ProcessProgress())
                continue
            if request is None or request.WhichOneof("frame") == "cancel":
                self.session.canceled.set()
            elif request.WhichOneof("frame") != "data":
                raise ValueError("frame: must be data or cancel")
            else:
                self.session.heard()
                return request.data


if __name__ == "__main__":
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(16))
    add_KnowledgeSyncProviderServiceServicer_to_server(Provider(Store(pathlib.Path(sys.argv[1]).absolute())), server)
    host, _, port = (sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1:0").rpartition(":")
    print(f"http://{host}:{server.add_insecure_port(f'{host}:{port}')}", flush=True)
    server.start()
    server.wait_for_termination()
