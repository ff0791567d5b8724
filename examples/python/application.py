"""ProcessChangeBatch: one batch, applied change by change."""
import functools
import hashlib
import queue
import sys
import threading

import grpc
from json_store import Changed, digest
from knowledge import Knowledge
from sessions import CODES, Refused
from settle import copy_name, settle
from synclave.v1 import change_batch_pb2 as data, enums_pb2 as enums
from synclave.v1 import knowledge_sync_provider_service_pb2 as pb


class ItemError(Exception):
    """One item cannot be carried over; the others go on."""

    def __init__(self, reason, message):
        super().__init__(message)
        self.reason = reason

    def to_wire(self, item):
        return data.RecoverableError(hresult=CODES[self.reason], item_display_name=item.decode(errors="replace"),
                                     error_description=str(self))


def required(message, *fields):
    for field in fields:
        if not message.HasField(field):
            raise ValueError(f"{message.DESCRIPTOR.name}.{field}: is missing")


def not_as_announced():
    return ItemError("SYNC_E_DATA_MODIFIED_CONCURRENTLY", "the content that came is not what was announced")


def out_of_order():
    return Refused(grpc.StatusCode.INVALID_ARGUMENT, "SYNC_E_NOT_EXPECTED_CHANGE",
                   "data came out of order, or is longer than announced")


def version_of(version, replicas):
    if version.replica_key >= len(replicas) or not 0 < version.tick_count < 1 << 63:
        raise ValueError("a version is not of the batch's replica_ids, or has no tick")
    return [replicas[version.replica_key].hex(), version.tick_count]


class Application:
    """One batch: each change is durable, and known, before it is reported."""

    def __init__(self, provider, session, start, batch, requests):
        self.store, self.session, self.batch = provider.store, session, batch
        self.policy = start.conflict_resolution_policy
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
        self.made_with = [Knowledge.from_wire(group.made_with_knowledge, "made_with_knowledge")
                          for group in batch.groups]
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
                        reason = "SYNC_E_DATA_MODIFIED_CONCURRENTLY" if isinstance(error, Changed) else "E_FAIL"
                        error = ItemError(reason, str(error) or "it has changed while it was being synced")
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
        """What the group teaches, as a whole or as far as `last`, without what was left out or rests on what is missing."""
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
        modified = change.modification_time.ToNanoseconds() if change.HasField("modification_time") else None
        theirs = {"version": version_of(change.change_version, replicas), "modified": modified, "file": None,
                  "creation": version_of(change.creation_version, replicas), "deleted": bool(change.flags & 1),
                  "properties": {}, "digest": digest(b""), "size": 0}
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
            if change.HasField("inline_data"):
                header, content = change.inline_data.header, change.inline_data.content
            else:
                header, content = yield from self.load(change)
            theirs |= {"properties": dict(header.properties), "digest": digest(content), "size": len(content)}
            announced = {change.content_digest, header.content_digest}
            sizes = {header.content_size} | ({change.data_size} if change.HasField("data_size") else set())
            if announced - {b"", bytes.fromhex(theirs["digest"])} or sizes != {len(content)}:
                raise not_as_announced()
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
                copy = store.next_version(made_with)
                after = {**loser, "deleted": False, "version": copy, "creation": copy}
                store.write(name, store.row(name), after, kept, store.knowledge)
            knowledge = store.knowledge.union(self.learned(group, made_with, left_out, item))
            version = version or store.next_version(made_with)
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
        wire.change_version.replica_id = bytes.fromhex(row["version"][0])
        wire.change_version.tick_count = row["version"][1]
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
                raise out_of_order()
            if kind == "header":
                header = part.header
            elif kind == "chunk":
                content += part.chunk
                if len(content) > header.content_size:
                    raise out_of_order()
            elif kind == "end":
                if hashlib.sha256(content).digest() != part.end.content_digest:
                    raise not_as_announced()
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
