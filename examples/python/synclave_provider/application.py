"""ProcessChangeBatch: one batch, applied change by change."""
import functools
import hashlib
import queue
import sys
import threading

import grpc
from . import units
from .knowledge import Knowledge
from .replica import Changed, digest
from .sessions import CODES, Refused
from .settle import copy_name, settle
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
        self.replica, self.session, self.batch = provider.replica, session, batch
        self.policy, self.decisions = start.conflict_resolution_policy, start.resolutions
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
        self.known, self.loads, self.inputs = self.replica.knowledge, 0, queue.SimpleQueue()
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
                    left_out.append((change.item_id, tuple(outcome.failed_change_unit_ids)))
                applied += outcome.outcome == enums.CHANGE_OUTCOME_KIND_APPLIED
                self.session.applied += outcome.outcome == enums.CHANGE_OUTCOME_KIND_APPLIED
                self.session.heard()
                yield pb.ProcessChangeBatchResponse(outcome=outcome)
            with self.replica.lock:
                self.replica.commit({}, self.replica.knowledge.union(self.learned(group, made_with, left_out)))
        response = pb.ProcessChangeBatchResponse()
        response.result.statistics.changes_applied, response.result.statistics.changes_failed = applied, failed
        self.replica.knowledge.to_wire(response.result.learned_knowledge, self.replica.id)
        yield response

    def learned(self, group, made_with, left_out, last=None):
        """What the group teaches, as a whole or as far as `last`, without what was left out or rests on what is missing."""
        if group.WhichOneof("kind") == "ordered":
            upper = group.ordered.upper_bound if group.ordered.HasField("upper_bound") else None
            learned = made_with.within(group.ordered.lower_bound, upper if last is None else last)
        elif last is None and group.unordered.all_changes_for_knowledge:
            learned = made_with
        else:
            listed = [change for change in group.changes if last in (None, change.item_id)]
            parts = [(change.item_id, [unit.change_unit_id for unit in change.change_units]) for change in listed]
            learned = functools.reduce(Knowledge.union, (made_with.only(*part) for part in parts), Knowledge())
        learned = functools.reduce(lambda learned, part: learned.without(*part), left_out, learned)
        return learned.where(self.prerequisite, self.known)

    def apply(self, group, made_with, change, left_out, outcome):
        item, replicas, replica = change.item_id, self.batch.replica_ids, self.replica
        time_of = lambda message: message.modification_time.ToNanoseconds() if message.HasField("modification_time") else None
        creation, modified = version_of(change.creation_version, replicas), time_of(change)
        listed = {units.name_of(unit.change_unit_id): [version_of(unit.version, replicas), time_of(unit) or modified]
                  for unit in change.change_units}
        theirs = {"version": creation if listed else version_of(change.change_version, replicas), "modified": modified,
                  "mark": None, "creation": creation, "deleted": bool(change.flags & 1), "properties": {},
                  "digest": digest(b""), "size": 0, "units": None,
                  "winner": change.winner_item_id.hex() or None}
        versions = [(version, name) for name, (version, _) in listed.items()] or [(theirs["version"], None)]
        if not all(units.has(made_with, item, *version) for version in versions):
            raise ItemError("SYNC_E_CHANGE_NOT_IN_KNOWLEDGE", "its version is not in the source's knowledge")
        is_new = bool(listed) and units.tells_anew(item, creation, made_with, self.known)
        if all(units.has(self.known, item, *version) for version in versions) and not is_new:
            outcome.outcome = enums.CHANGE_OUTCOME_KIND_OBSOLETE
            return
        if not self.known.within(item, item).contains(self.prerequisite.within(item, item)):
            raise ItemError("SYNC_E_CHANGE_NEEDS_KNOWLEDGE", "an earlier change of it was left out")
        if listed and not units.has_base(made_with, item, creation) and not units.is_here(replica.row(item)):
            raise ItemError("SYNC_E_ITEM_HAS_NO_CHANGE_UNITS", "only some of its change units are sent, and it is not here")
        whole = not listed or units.is_whole(item, creation, replica.row(item), made_with, self.known)
        content = b""
        if not theirs["deleted"]:
            # With units that is inline which is listed: all of them where the item is not known here.
            if change.HasField("inline_data") and (not listed or not whole or is_new):
                header, content = change.inline_data.header, change.inline_data.content
            else:
                header, content = yield from self.load(change, [] if whole else list(listed))
            theirs |= {"properties": dict(header.properties), "digest": digest(content), "size": len(content)}
            announced = {header.content_digest} if listed else {header.content_digest, change.content_digest}
            sizes = {header.content_size} | ({change.data_size} if change.HasField("data_size") and not listed else set())
            if announced - {b"", bytes.fromhex(theirs["digest"])} or sizes != {len(content)}:
                raise not_as_announced()
        members = units.parse(content) if listed else None
        if listed and members is None:
            raise ItemError("SYNC_E_ITEM_HAS_CHANGE_UNITS", "it has change units, and what came is no JSON object")
        if whole and listed:
            theirs["units"] = units.taken(creation, listed, members, modified)
        with replica.lock:
            row = replica.row(item)
            if listed and whole != units.is_whole(item, creation, row, made_with, self.known):
                raise Changed
            settled = self.settle(change, theirs, made_with, row, content) if whole else \
                self.merge(item, creation, listed, members, made_with, row)
            after, content, conflict, kept, waits = settled
            outcome.conflict = conflict
            outcome.failed_change_unit_ids.extend(map(units.id_of, sorted(waits)))
            if waits or after is None:
                outcome.outcome = enums.CHANGE_OUTCOME_KIND_DEFERRED
                self.describe(item, row, waits, outcome.destination_change)
            if after is None:
                return
            for name, loser, text in kept:  # first: it must be kept before anything takes its place
                version = replica.next_version(made_with)
                replica.write(name, replica.row(name), {**units.renewed(loser, version), "creation": version}, text, replica.knowledge)
            parts = left_out + ([(item, tuple(outcome.failed_change_unit_ids))] if waits else [])
            knowledge = replica.knowledge.union(self.learned(group, made_with, parts, item))
            if content is None:
                replica.commit({item: after}, knowledge)
            else:
                replica.write(item, row, after, content, knowledge)
            if not waits:
                outcome.outcome = enums.CHANGE_OUTCOME_KIND_APPLIED

    def policy_for(self, item, conflicts, policy):
        """What was decided about all of these conflicts alike, each a unit, or None, with both versions; else the policy. A version
        that has moved on since makes it a conflict anew."""
        about = lambda decision: (units.name_of(decision.change_unit_id) if decision.HasField("change_unit_id") else None,
                                  *([version.replica_id.hex(), version.tick_count]
                                    for version in (decision.source_version, decision.destination_version)))
        decided = [next((units.POLICY_OF.get(decision.action, units.NONE) for decision in self.decisions
                         if decision.item_id == item and decision.HasField("action") and about(decision) == conflict), None)
                   for conflict in conflicts]
        return decided[0] if decided and None not in decided and len(set(decided)) == 1 else policy

    def policy_of_whole(self, item, theirs, row):
        """The same of an item as a whole: the conflicts of all its units, where a side has versions of them."""
        sides = [{name: unit[1] for name, unit in ((side or {}).get("units") or {}).items()} for side in (theirs, row)]
        if row is None or all(sides) and sides[0].keys() != sides[1].keys():
            return self.policy
        names = sides[0] or sides[1] or [None]
        at = lambda side, units, name: units[name] if units else side["version"]
        return self.policy_for(item, [(name, at(theirs, sides[0], name), at(row, sides[1], name)) for name in names], self.policy)

    def settle(self, change, theirs, made_with, row, content):
        """(row, content, conflict, kept, units that wait) of a change of an item as a whole. No row: it is deferred. No content: what
        is there stays. What is kept are names, rows and contents."""
        policy = self.policy_of_whole(change.item_id, theirs, row)
        winner, version, conflict = settle(change, theirs, made_with, self.known, row, policy)
        if winner == "MUST_EXIST":
            raise ItemError("SYNC_E_ITEM_MUST_EXIST", "its creation is known here, but the item is not")
        kept = []
        if winner.endswith("+COPY"):
            winner, loser = winner.removesuffix("+COPY"), row if winner.startswith("SOURCE") else theirs
            name = self.copy_of(change.item_id, loser)
            if name == "":
                winner = "DEFERRED"
            elif name is not None:
                text = content if loser is theirs else self.replica.read(change.item_id, row)
                kept = [(name, {**loser, "deleted": False}, text)]
        if winner == "DEFERRED":
            return None, None, conflict, [], []
        own, version = version is None, version or self.replica.next_version(made_with)
        if winner == "DESTINATION":
            if own or version == row["version"]:
                return units.renewed(row, version) if own else row, None, conflict, kept, []
            after = {**row, "version": version, "winner": theirs["winner"]}
            if theirs["units"] is not None or row.get("units") is not None:
                after |= {"creation": theirs["creation"], "units": theirs["units"]}
            return after, None, conflict, kept, []
        if theirs["deleted"]:
            return {**(row or theirs), "deleted": True, "version": version, "units": None, "winner": theirs["winner"]}, \
                None if row is None or row["deleted"] else b"", conflict, kept, []
        return units.renewed(theirs, version) if own else theirs, content, conflict, kept, []

    def merge(self, item, base, listed, members, made_with, row):
        """The same of a change of some units of an item that is here."""
        local = units.parse(self.replica.read(item, row))
        if local is None:
            raise Changed
        own = functools.cache(lambda: self.replica.next_version(made_with))

        def merge(policy):
            def policy_for(*conflict):
                decided = self.policy_for(item, [conflict], policy)
                # A decision about one unit does not make a copy of the item: it waits.
                return units.NONE if decided == units.KEEP_BOTH != policy else decided
            return units.merge(item, listed, base, row, members, local, made_with, self.known, policy_for, own)

        after, merged, losers, waits, conflict = merge(self.policy)
        kept = []
        if losers and self.policy == units.KEEP_BOTH:
            copy = merged | {name: value for name, (value, _) in losers.items()}
            loser = self.divided(row, units.at(copy, None, max((time or 0 for _, time in losers.values())) or None), copy)
            name = self.copy_of(item, loser)
            if name == "":  # nothing may be lost: they wait for a person
                after, merged, _, waits, conflict = merge(units.NONE)
            elif name is not None:
                kept = [(name, loser, units.canonical(copy))]
        if merged == local:
            return after, None, conflict, kept, waits
        return self.divided(after, after["units"], merged), units.canonical(merged), conflict, kept, waits

    @staticmethod
    def divided(row, divided, members):
        """The row of an item whose content is made of its members."""
        content = units.canonical(members)
        properties = {key: value for key, value in row["properties"].items() if key != "mtime"}
        return {**row, "units": divided, "digest": digest(content), "size": len(content), "properties": properties,
                "modified": units.time_of(divided) or row["modified"]}

    def copy_of(self, item, loser):
        """A free name for the loser; None when one has its content already; empty when there is none."""
        listed = {change.item_id for group in self.batch.groups for change in group.changes}
        for attempt in range(1, 1_000):
            name = copy_name(item, loser, attempt)
            if name is None:
                return ""
            row = self.replica.row(name)
            if name not in listed and (not row or row["deleted"]):
                return name
            if name not in listed and row["digest"] == loser["digest"]:
                return None
        return ""

    def describe(self, item, row, waits, wire):
        wire.item_id, wire.deleted = item, row["deleted"]
        if row.get("units") is None:
            wire.change_version.replica_id, wire.change_version.tick_count = bytes.fromhex(row["version"][0]), row["version"][1]
        for name in waits or row.get("units") or ():
            version = row["units"].get(name, [None, row["version"]])[1]
            unit = wire.change_units.add(change_unit_id=units.id_of(name))
            unit.version.replica_id, unit.version.tick_count = bytes.fromhex(version[0]), version[1]
        if not row["deleted"]:
            wire.data_size, wire.content_digest = row["size"], bytes.fromhex(row["digest"])

    def load(self, change, names):
        """Header and content of an item, or of some units of it, from the source."""
        self.loads += 1
        version = change.change_units[0].version if change.change_units else change.change_version
        load = pb.ProcessLoad(load_id=self.loads, item_id=change.item_id, version=version,
                              change_unit_ids=map(units.id_of, names))
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
