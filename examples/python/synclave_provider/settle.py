"""What becomes of one change at the destination: the table of Sync Framework, and the policies for its conflicts."""
import re
import time

from . import units
from .units import DESTINATION_WINS, KEEP_BOTH, NONE, SOURCE_WINS, latest


def settle(change, theirs, made_with, known, row, policy):
    """(winner, version, conflict): winner is MUST_EXIST, DEFERRED, SOURCE, DESTINATION, SOURCE+COPY or
    DESTINATION+COPY; version is the change's, the row's, or None for a new one of this replica.

    A conflict's outcome gets a new version, whoever won, so that it is newer than both sides: with the winner's version a third
    replica would settle the same conflict again, differently. Only where nothing is decided the greater version stays, by
    tick: a replica gives out ticks above all that it knows, so every replica finds the same one.
    """
    deletes, version, item = bool(change.flags & 1), theirs["version"], change.item_id
    if row is None:
        return ("MUST_EXIST" if units.has(known, item, theirs["creation"]) else "SOURCE"), version, False
    divided = theirs["units"] is not None or row.get("units") is not None
    if row["version"] == version and not divided:
        return "DESTINATION", version, False
    if units.has_all(made_with, item, row):  # the source knew what is here, and changed that
        return "SOURCE", version, False
    # Where units have versions of their own there is no greater one that says it all.
    greater = latest(version, row["version"]) if units.is_one(theirs) and units.is_one(row) else None
    if deletes and row["deleted"]:
        return "DESTINATION", greater, False
    if deletes != row["deleted"] and policy != NONE:  # an edit beats a deletion, unless the policy names a side
        named = {DESTINATION_WINS: "DESTINATION", SOURCE_WINS: "SOURCE"}
        return named.get(policy, "DESTINATION" if deletes else "SOURCE"), None, True
    same = units.same(theirs, row) and not deletes and not row["deleted"]
    rank = lambda state: (state["modified"] is not None, state["modified"] or 0,
                          sorted(state["properties"].items()) if same else state["digest"])
    if same and (divided or rank(theirs) == rank(row)):
        return "DESTINATION", greater, False
    if policy == NONE:
        return "DEFERRED", None, True
    if policy in (DESTINATION_WINS, SOURCE_WINS):
        return "DESTINATION" if policy == DESTINATION_WINS else "SOURCE", None, True
    winner = "SOURCE" if rank(theirs) > rank(row) else "DESTINATION"
    return winner + ("+COPY" if policy == KEEP_BOTH and not same else ""), None, True


def copy_name(item, loser, attempt):
    """Where a conflict's loser is kept: the same name on every replica that settles it. None: there is no room."""
    parent, slash, name = item.rpartition(b"/")
    marks = list(re.finditer(rb"\.conflict-\d{8}-\d{6}-[0-9A-Fa-f]{6}(-\d+)?(?=\.|$)", name))
    if marks and marks[-1].start() > 0:  # a copy that loses in turn is named after the original
        name = name[:marks[-1].start()] + name[marks[-1].end():]
    dot = name.rfind(b".")
    stem, extension = (name[:dot], name[dot:]) if dot > 0 and len(name) - dot <= 32 else (name, b"")
    at = time.gmtime(max(loser["modified"] or 0, 0) // 1_000_000_000)
    mark = f".conflict-{time.strftime('%Y%m%d-%H%M%S', at)}-{loser['digest'][:6]}"
    mark += f"-{attempt}" if attempt > 1 else ""
    copy = stem + mark.encode() + extension
    return parent + slash + copy if len(copy) <= 255 and len(parent) + 1 + len(copy) <= 4095 else None
