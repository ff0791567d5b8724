"""A whole provider in Python, for a directory of JSON files. See README.md beside it.

Usage: json_provider.py DIRECTORY [HOST:PORT]. The first line that it prints is its address.
"""
import concurrent.futures
import functools
import hashlib
import inspect
import pathlib
import sys
import uuid

import grpc
import units
from application import Application, ItemError, required, version_of
from json_store import Changed, Store
from knowledge import Knowledge
from sessions import Refused, Sessions, invalid
from synclave.v1 import change_batch_pb2 as data, enums_pb2 as enums, knowledge_pb2
from synclave.v1 import knowledge_sync_provider_service_pb2 as pb
from synclave.v1.knowledge_sync_provider_service_pb2_grpc import (
    KnowledgeSyncProviderServiceServicer, add_KnowledgeSyncProviderServiceServicer_to_server)

CHUNK = 256 * 1024  # bytes of content in one message; a message takes 4 MiB
SLACK = 64 * 1024  # bytes of a message that a batch leaves free
SOURCE, DESTINATION = enums.SYNC_PROVIDER_ROLE_SOURCE, enums.SYNC_PROVIDER_ROLE_DESTINATION


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


class Provider(KnowledgeSyncProviderServiceServicer):
    def __init__(self, store):
        self.store, self.sessions, self.instance, self.went_back = store, Sessions(), str(uuid.uuid4()), False

    @answering
    def GetIdParameters(self, request, context):
        pair = knowledge_pb2.IdParameterPair
        schema = knowledge_pb2.IdParameters(replica_id=pair(id_size=16), item_id=pair(is_variable=True, id_size=4096),
                                            change_unit_id=pair(is_variable=True, id_size=255))
        return pb.GetIdParametersResponse(
            id_parameters=schema, replica_id=self.store.replica, instance_id=self.instance,
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
        """One ordered group from the beginning on. What was skipped in the session counts as known."""
        required(request, "destination_knowledge")
        with self.sessions.enter(request, SOURCE) as session, self.store.lock:
            known, store = Knowledge.from_wire(request.destination_knowledge, "destination_knowledge"), self.store
            self.check_own_tick(known)
            rows = {item: row for item, row in store.rows().items() if units.lacks(item, row, known, store.knowledge)}
            versions = [version for row in rows.values() for version in (row["version"], row["creation"])]
            versions += [unit[1] for row in rows.values() for unit in (row.get("units") or {}).values()]
            replicas = [store.replica] + sorted({bytes.fromhex(replica) for replica, _ in versions} - {store.replica})
            batch = data.ChangeBatch(replica_ids=replicas, prerequisite_knowledge=request.destination_knowledge)
            Knowledge().to_wire(batch.forgotten_knowledge, store.replica)
            group = batch.groups.add(ordered=data.OrderedGroup())
            store.knowledge.to_wire(group.made_with_knowledge, store.replica)
            room = min(request.max_bytes or 4 << 20, 4 << 20) - SLACK - batch.ByteSize()
            wire = lambda version: knowledge_pb2.Version(replica_key=replicas.index(bytes.fromhex(version[0])),
                                                         tick_count=version[1])
            for item, row in rows.items():
                change = data.ItemChange(item_id=item, creation_version=wire(row["creation"]), work_estimate=1,
                                         flags=1 if row["deleted"] else 0)
                for name in units.missing(item, row, known, store.knowledge) if row.get("units") else ():
                    _, version, modified = row["units"].get(name, [None, row["version"], None])
                    unit = change.change_units.add(change_unit_id=units.id_of(name), version=wire(version))
                    if modified is not None:
                        unit.modification_time.FromNanoseconds(modified)
                if row["deleted"] and row.get("winner"):
                    change.winner_item_id = bytes.fromhex(row["winner"])
                if not change.change_units:
                    change.change_version.CopyFrom(wire(row["version"]))
                if not row["deleted"]:
                    change.data_size = row["size"]
                    if not change.change_units:
                        change.content_digest = bytes.fromhex(row["digest"])
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
            session.replicas, session.made_with = replicas, store.knowledge
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
                    content = self.store.read(request.item_id, row)
                    if row.get("units") is not None:
                        content = units.part(request, row, version, session.made_with, content)
                    elif row["version"] != version:
                        raise Changed
                    if content is None:
                        raise Changed
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


if __name__ == "__main__":
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(16))
    add_KnowledgeSyncProviderServiceServicer_to_server(Provider(Store(pathlib.Path(sys.argv[1]).absolute())), server)
    host, _, port = (sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1:0").rpartition(":")
    print(f"http://{host}:{server.add_insecure_port(f'{host}:{port}')}", flush=True)
    server.start()
    server.wait_for_termination()
