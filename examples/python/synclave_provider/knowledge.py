"""What a replica knows: for ranges of items, the highest tick of each replica. Pure; the rules are those of Sync Framework.

A vector is a dict from replica id to tick. A knowledge has a column for each change unit that is spoken of by name, and one
(None) for all others and for items as a whole. A column is a list of (lower bound, vector), ascending, the first bound empty.
"""
import bisect

MAX_ITEM_ID = 4096


def after(item):
    """The least id above this one."""
    if len(item) < MAX_ITEM_ID:
        return item + b"\0"
    kept = item.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else None


class Knowledge:
    def __init__(self, columns=None):
        self.columns = columns or {None: [(b"", {})]}

    def vector(self, item, unit=None):
        column = self.columns.get(unit, self.columns[None])
        return column[bisect.bisect_right(column, item, key=lambda entry: entry[0]) - 1][1]

    def has(self, item, version, unit=None):
        """Whether the change of this item, or of one unit of it, with this version, a (replica, tick), is known."""
        units = self.columns if unit is None else [unit]
        return all(self.vector(item, unit).get(version[0], 0) >= version[1] for unit in units)

    def combined(self, rule, *others):
        """A knowledge whose vectors `rule` makes of those that this and the others have of the same items and units."""
        columns = {}
        for unit in {unit for knowledge in (self, *others) for unit in knowledge.columns}:
            bounds = {bound for knowledge in (self, *others)
                      for bound, _ in knowledge.columns.get(unit, knowledge.columns[None])}
            column = columns[unit] = []
            for bound in sorted(bounds):
                vector = rule(self.vector(bound, unit), *(other.vector(bound, unit) for other in others))
                if not column or column[-1][1] != vector:
                    column.append((bound, vector))
        return Knowledge({unit: column for unit, column in columns.items() if unit is None or column != columns[None]})

    def union(self, other):
        return self.combined(lambda a, b: {r: max(a.get(r, 0), b.get(r, 0)) for r in a.keys() | b.keys()}, other)

    def contains(self, other):
        missing = []
        self.combined(lambda a, b: missing.append(not includes(a, b)) or {}, other)
        return not any(missing)

    def within(self, lower, upper=None):
        """Only what is known of items from one id to another, both included; without an upper one, to the end."""
        inside = {None: [(b"", {})] * bool(lower) + [(lower, {"": 1})]}
        if upper is not None and after(upper) is not None:
            inside[None].append((after(upper), {}))
        return self.combined(lambda vector, mask: vector if mask else {}, Knowledge(inside))

    def without(self, item, units=()):
        """Nothing of an item, or of some units of it."""
        return self.combined(lambda vector, mask: {} if mask else vector, selection(item, units))

    def only(self, item, units=()):
        """Nothing but an item, or some units of it."""
        return self.combined(lambda vector, mask: vector if mask else {}, selection(item, units))

    def where(self, prerequisite, known):
        """Only what may be learned by one who knows `known`: where that includes the prerequisite (R19)."""
        return self.combined(lambda learned, p, k: learned if includes(k, p) else {}, prerequisite, known)

    def with_tick(self, replica, tick):
        """A replica knows all of its own changes."""
        return self.combined(lambda vector: {**vector, replica: tick} if tick else vector)

    def max_tick(self, replica):
        return max(vector.get(replica, 0) for column in self.columns.values() for _, vector in column)

    def highest_tick(self):
        return max((tick for column in self.columns.values() for _, vector in column for tick in vector.values()), default=0)

    def to_wire(self, message, owner):
        """Writes it into a message of the wire."""
        entries = [vector for column in self.columns.values() for _, vector in column]
        replicas = [owner] + sorted({replica for vector in entries for replica in vector} - {owner})
        message.replica_ids.extend(replicas)
        index = {(): 0}
        message.clock_vectors.add()
        for unit, column in sorted(self.columns.items(), key=lambda entry: entry[0] or b""):
            fragment = message.fragments.add(change_unit_ids=[] if unit is None else [unit])
            for bound, vector in column:
                key = tuple(sorted((replicas.index(replica), tick) for replica, tick in vector.items() if tick))
                if key not in index:
                    index[key] = len(message.clock_vectors)
                    elements = message.clock_vectors.add().elements
                    for replica_key, tick in key:
                        elements.add(replica_key=replica_key, tick_count=tick)
                fragment.ranges.add(lower_bound=bound, clock_vector_index=index[key])
        return message

    @staticmethod
    def from_wire(message, where="knowledge"):
        """Reads it from a message, which a stranger may have written: ValueError says what is wrong with it."""
        ids, columns = list(message.replica_ids), {}
        check(len(set(ids)) == len(ids) and all(len(replica) == 16 for replica in ids), where, "replica_ids")
        vectors = []
        for vector in message.clock_vectors:
            keys = [element.replica_key for element in vector.elements]
            check(keys == sorted(set(keys)) and all(key < len(ids) for key in keys), where, "clock_vectors")
            vectors.append({ids[element.replica_key]: element.tick_count for element in vector.elements
                            if element.tick_count})
        check(not vectors or not vectors[0], where, "clock_vectors: the first must be empty")
        for fragment in message.fragments:
            bounds = [entry.lower_bound for entry in fragment.ranges]
            check(bounds[:1] == [b""] and bounds == sorted(set(bounds)), where, "ranges")
            check(all(len(bound) <= MAX_ITEM_ID for bound in bounds), where, "lower_bound")
            check(all(entry.clock_vector_index < len(vectors) for entry in fragment.ranges), where, "clock_vector_index")
            units = list(fragment.change_unit_ids)
            check(units == sorted(set(units)) and all(0 < len(unit) <= 255 for unit in units), where, "change_unit_ids")
            for unit in units or [None]:
                check(unit not in columns, where, "a change unit is in two fragments")
                columns[unit] = [(entry.lower_bound, vectors[entry.clock_vector_index]) for entry in fragment.ranges]
        check(not columns or None in columns, where, "fragments: none is about all other change units")
        return Knowledge(columns)


def selection(item, units):
    """A knowledge that has something for an item, or for some units of it, and for nothing else."""
    return Knowledge({None: [(b"", {})]} | {unit: [(b"", {"": 1})] for unit in units or [None]}).within(item, item)


def includes(vector, other):
    return all(vector.get(replica, 0) >= tick for replica, tick in other.items())


def check(good, where, what):
    if not good:
        raise ValueError(f"{where}.{what}")
