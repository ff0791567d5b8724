"""The calls of a provider (KnowledgeSyncProviderService), over a replica. As a source it lists what a destination lacks, and gives
its data; a batch for it as a destination is an Application."""
import functools
import hashlib
import inspect
import uuid

import grpc
from synclave.v1 import change_batch_pb2 as data, enums_pb2 as enums, knowledge_pb2
from synclave.v1 import knowledge_sync_provider_service_pb2 as pb
from synclave.v1 import knowledge_sync_provider_service_pb2_grpc as service

from . import units
from .application import Application, ItemError, required, version_of
from .knowledge import Knowledge
from .replica import Changed
from .serving import serve
from .sessions import Refused, Sessions, invalid

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


def change_of(item, row, names, replicas):
    """A row as a change: of these units of the item, or without any of the item as a whole."""
    def wire(version):
        return knowledge_pb2.Version(replica_key=replicas.index(bytes.fromhex(version[0])), tick_count=version[1])

    def set_time(message, modified):
        if modified is not None:
            message.modification_time.FromNanoseconds(modified)

    change = data.ItemChange(item_id=item, creation_version=wire(row["creation"]), work_estimate=1, flags=int(row["deleted"]))
    for name in names:
        _, version, modified = row["units"].get(name, [None, row["version"], None])
        set_time(change.change_units.add(change_unit_id=units.id_of(name), version=wire(version)), modified)
    if not names:
        change.change_version.CopyFrom(wire(row["version"]))
    if row["deleted"] and row.get("winner"):
        change.winner_item_id = bytes.fromhex(row["winner"])
    if not row["deleted"]:
        change.data_size = row["size"]
        if not names:
            change.content_digest = bytes.fromhex(row["digest"])
        set_time(change, row["modified"])
    return change


class Provider(service.KnowledgeSyncProviderServiceServicer):
    def __init__(self, replica):
        self.replica, self.sessions, self.instance, self.went_back = replica, Sessions(), str(uuid.uuid4()), False

    @answering
    def GetIdParameters(self, request, context):
        pair = knowledge_pb2.IdParameterPair
        schema = knowledge_pb2.IdParameters(replica_id=pair(id_size=16), item_id=pair(is_variable=True, id_size=4096),
                                            change_unit_id=pair(is_variable=True, id_size=255))
        return pb.GetIdParametersResponse(
            id_parameters=schema, replica_id=self.replica.id, instance_id=self.instance,
            member_name=self.replica.store.name, incarnation_id=self.replica.meta["incarnation"],
            limits=pb.ProviderLimits(max_source_sessions=1))

    @answering
    def BeginSession(self, request, context):
        def prepare():
            with self.replica.lock:
                if self.went_back:
                    self.replica.start_anew()
                    self.went_back = False
                self.replica.detect()
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
        with self.sessions.enter(request, DESTINATION), self.replica.lock:
            response = pb.GetSyncBatchParametersResponse(requested_batch_size=500)
            self.replica.knowledge.to_wire(response.knowledge, self.replica.id)
            return response

    @answering
    def GetChangeBatch(self, request, context):
        """One ordered group from the beginning on. What was skipped in the session counts as known."""
        required(request, "destination_knowledge")
        with self.sessions.enter(request, SOURCE) as session, self.replica.lock:
            replica, known = self.replica, Knowledge.from_wire(request.destination_knowledge, "destination_knowledge")
            self.check_own_tick(known)
            rows = {item: row for item, row in replica.rows().items() if units.lacks(item, row, known, replica.knowledge)}
            versions = [version for row in rows.values() for version in (row["version"], row["creation"])]
            versions += [unit[1] for row in rows.values() for unit in (row.get("units") or {}).values()]
            replicas = [replica.id] + sorted({bytes.fromhex(maker) for maker, _ in versions} - {replica.id})
            batch = data.ChangeBatch(replica_ids=replicas, prerequisite_knowledge=request.destination_knowledge)
            Knowledge().to_wire(batch.forgotten_knowledge, replica.id)
            group = batch.groups.add(ordered=data.OrderedGroup())
            replica.knowledge.to_wire(group.made_with_knowledge, replica.id)
            room = min(request.max_bytes or 4 << 20, 4 << 20) - SLACK - batch.ByteSize()
            for item, row in rows.items():
                names = units.missing(item, row, known, replica.knowledge) if row.get("units") else ()
                change = change_of(item, row, names, replicas)
                room -= change.ByteSize() + 8
                if group.changes and (room < 0 or len(group.changes) >= (request.requested_batch_size or 500)):
                    group.ordered.upper_bound = group.changes[-1].item_id
                    break
                group.changes.append(change)
            batch.work_estimate = len(group.changes)
            batch.remaining_work_estimate = batch.remaining_updates = len(rows) - len(group.changes)
            batch.is_last_batch = batch.remaining_updates == 0
            session.replicas, session.made_with = replicas, replica.knowledge
            return pb.GetChangeBatchResponse(batch=batch)

    @answering
    def LoadChangeData(self, request, context):
        with self.sessions.enter(request, SOURCE) as session:
            version = version_of(request.version, session.replicas)
            try:
                with self.replica.lock:
                    row = self.replica.row(request.item_id)
                    if not row or row["deleted"]:
                        raise ItemError("SYNC_E_HAS_NO_DATA", "there is no data: the item is deleted or unknown here")
                    content = self.replica.read(request.item_id, row)
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
        if any(knowledge.max_tick(self.replica.id) > self.replica.meta["tick"] for knowledge in knowledges):
            self.went_back = True
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, "REPLICA_WENT_BACK",
                          "this replica was restored or cloned: it takes a new id, begin another session")


def serve_provider(provider, *address):
    """Serves until the process ends. The first line that it prints is its address."""
    serve(service.add_KnowledgeSyncProviderServiceServicer_to_server, provider, *address)
