"""Change units: an item whose content is a JSON object, and whose members are versioned each on its own. Pure.

Units are a dict from a member's name to [digest of its value, or None without one; version; time, or None]. A member that was taken
out stays a unit. A unit that is not in the dict is at the item's base, which is its version and its creation, and has no value.
"""
import hashlib
import json

NONE, DESTINATION_WINS, SOURCE_WINS, LAST_WRITER_WINS, KEEP_BOTH = 0, 1, 2, 16, 17  # policies
POLICY_OF = {1: DESTINATION_WINS, 2: SOURCE_WINS, 16: KEEP_BOTH}  # by SyncResolveAction; any other leaves a conflict deferred
MAX_UNITS, MAX_BYTES = 4_096, 4 << 20  # of an item; one that is larger is changed as a whole


def parse(content):
    """The members of an item's content; None for what is no object, or too large for one."""
    try:
        members = json.loads(content) if len(content) <= MAX_BYTES else None
    except ValueError:
        return None
    fits = isinstance(members, dict) and len(members) <= MAX_UNITS and all(0 < len(name.encode()) <= 255 for name in members)
    return members if fits else None


def canonical(value):
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def digest_of(members, name):
    return hashlib.sha256(canonical(members[name])).hexdigest() if name in members else None


def at(members, version, modified):
    """All of an item's members at one version."""
    return {name: [digest_of(members, name), version, modified] for name in members}


def edited(before, members, version, modified):
    """The units of an item that was edited: those that changed have the version."""
    changed = {name for name in before.keys() | members if before.get(name, [None])[0] != digest_of(members, name)}
    return before | {name: [digest_of(members, name), version, modified] for name in changed}


def taken(base, listed, members, modified):
    """The units of an item that comes as a whole: what is not listed is at its base."""
    return at(members, base, modified) | {name: [digest_of(members, name), *unit] for name, unit in listed.items()}


def time_of(units):
    """When the latest of the values was changed."""
    return max((unit[2] for unit in units.values() if unit[0] and unit[2] is not None), default=None)


def renewed(row, version):
    """A row whose item has got a version as a whole: its units with it."""
    if row.get("units") is None:
        return {**row, "version": version}
    units = {name: [digest, version, modified] for name, (digest, _, modified) in row["units"].items() if digest}
    return {**row, "version": version, "creation": version, "units": units}


def latest(*versions):
    return max(versions, key=lambda version: (version[1], version[0]))


def is_one(row):
    return all(version == row["version"] for _, version, _ in (row.get("units") or {}).values())


def same(one, other):
    """Whether two items have the same content. Of an object the layout is no part of it."""
    if one.get("units") is None or other.get("units") is None:
        return one["digest"] == other["digest"]
    values = lambda row: {name: unit[0] for name, unit in row["units"].items() if unit[0]}
    return values(one) == values(other)


def has(knowledge, item, version, unit=None):
    """Whether a version is known: of one unit of an item, or of the item as a whole, which means all of its units."""
    return knowledge.has(item, (bytes.fromhex(version[0]), version[1]), unit and id_of(unit))


def has_base(knowledge, item, version):
    """Whether the item is known, whatever is known of the units that are spoken of by name."""
    return knowledge.vector(item).get(bytes.fromhex(version[0]), 0) >= version[1]


def has_all(knowledge, item, row):
    if row.get("units") is None:
        return has(knowledge, item, row["version"])
    units = row["units"].items()
    return has_base(knowledge, item, row["version"]) and all(has(knowledge, item, unit[1], name) for name, unit in units)


def id_of(name):
    return name.encode(errors="surrogateescape")


def name_of(unit_id):
    return unit_id.decode(errors="surrogateescape")


def missing(item, row, known, made_with):
    """The units that a destination lacks: all of them where it does not know the base, for then it can tell which of its own are
    gone. With those that wait there for a decision."""
    if not has_base(known, item, row["version"]):
        return sorted(row["units"])
    lacks = [name for name, unit in row["units"].items() if not has(known, item, unit[1], name)]
    return sorted(lacks + waiting(item, row, known, made_with))


def lacks(item, row, known, made_with):
    """Whether a destination lacks an item or a unit of it. One that has all of the units lacks nothing, whatever it knows of the
    item as a whole."""
    units = row.get("units")
    if not units:
        return not has(known, item, row["version"])
    return any(not has(known, item, unit[1], name) for name, unit in units.items()) or bool(waiting(item, row, known, made_with))


def waiting(item, row, known, made_with):
    """Units that the item does not have, and that a destination which knows its base has left out of what it learned."""
    if row.get("units") is None or row["deleted"] or not has_base(known, item, row["version"]):
        return []
    return [name for name in map(name_of, filter(None, known.columns)) if name not in row["units"]
            and not has(known, item, row["version"], name) and has(made_with, item, row["version"], name)]


def part(load, row, version, made_with, content):
    """The units that a load asks for, or all, as an object; None when one has changed since the batch that it is about."""
    members = parse(content)
    names = {name_of(unit) for unit in load.change_unit_ids}
    versions = {name: unit[1] for name, unit in row["units"].items() if name in names or not names}
    versions |= {name: row["version"] for name in names - versions.keys()}
    known = all(has(made_with, load.item_id, at, name) for name, at in versions.items())
    if members is None or not known or version not in (versions.values() or [row["version"]]):
        return None
    return canonical({name: value for name, value in members.items() if name in names or not names})


def is_layout(row, content):
    """Whether an item with units differs from its row in nothing but the layout."""
    members = parse(content) if is_here(row) else None
    return members is not None and edited(row["units"], members, None, None) == row["units"]


def is_here(row):
    """Whether an item is here, in units."""
    return row is not None and not row["deleted"] and row.get("units") is not None


def tells_anew(item, base, made_with, known):
    """Whether a change tells of a base that is not known: the item was made, or changed as a whole. A source that has some of its
    units only, because of a filter, does not know it; of units that it does not list it says nothing."""
    return has_base(made_with, item, base) and not has_base(known, item, base)


def is_whole(item, base, row, made_with, known):
    """Whether a change of units is one of the item as a whole: it is not here in units, or both sides have made it anew."""
    return not is_here(row) or tells_anew(item, base, made_with, known) and not has_base(made_with, item, row["version"])


def merge(item, listed, base, row, members, local, made_with, known, policy_for, new_version):
    """(row, members, losers, left out, conflict) of an item of which some units come from the source. `listed` are the units of
    the change, `members` their values, `local` the values here; `policy_for` is told a unit and both versions. Losers are values,
    with a time, that KEEP_BOTH keeps.

    A unit whose conflict is settled gets a new version, whoever won. Where both sides have the same value the greater version stays.
    """
    is_new = tells_anew(item, base, made_with, known)
    anew = is_new and row["version"] != base
    units, merged, losers, left_out, conflict = dict(row["units"]), dict(local), {}, [], False
    is_gone = lambda name: is_new and name not in listed and has(made_with, item, base, name)
    gone = {name: [base, None] for name in units if is_gone(name)}  # the source's item does not have them
    for name, (version, modified) in {**listed, **gone}.items():
        ours, theirs = units.get(name, [None, row["version"], None]), [digest_of(members, name), version, modified]
        if has(known, item, version, name) or ours[1] == version:
            continue
        if has(made_with, item, ours[1], name) or ours[0] == theirs[0] and latest(ours[1], version) == version:
            wins = theirs
        elif ours[0] == theirs[0]:
            wins = ours
        else:
            conflict, rank = True, lambda unit: (unit[0] is not None, unit[2] is not None, unit[2] or 0, unit[0] or "")
            policy = policy_for(name, version, ours[1])
            if policy == NONE:
                left_out.append(name)
                wins = ours
            else:
                source = policy == SOURCE_WINS or policy != DESTINATION_WINS and rank(theirs) > rank(ours)
                wins = [(theirs if source else ours)[0], new_version(), (theirs if source else ours)[2]]
                if ours[0] and theirs[0]:
                    losers[name] = (local if source else members)[name], (ours if source else theirs)[2]
        if wins is not ours or anew:
            units[name] = wins
        if wins[0] is None:
            merged.pop(name, None)
        elif wins[0] == theirs[0]:
            merged[name] = members[name]
    after = {**row, "units": units, **({"version": base, "creation": base} if anew else {})}
    return after, merged, losers, left_out, conflict
