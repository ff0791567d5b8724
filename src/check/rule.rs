//! The rules, each with the id that reports and `docs/conformance.md` name it by.

use std::fmt;

macro_rules! rules {
    ($([$list:ident: $about:literal] $($name:ident = $id:literal, $source:literal, $title:literal;)*)*) => {
        /// A rule that a provider can be held to from outside.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Rule {
            $($(#[doc = $title] $name,)*)*
        }

        impl Rule {
            /// Every rule, in the order of the document.
            pub const ALL: &[Self] = &[$($(Self::$name,)*)*];

            $(
                #[doc = $about]
                pub const $list: &[Self] = &[$(Self::$name,)*];
            )*

            /// The stable id.
            pub fn id(self) -> &'static str {
                match self {
                    $($(Self::$name => $id,)*)*
                }
            }

            /// One line: what must hold.
            pub fn title(self) -> &'static str {
                match self {
                    $($(Self::$name => $title,)*)*
                }
            }

            /// Where the rule comes from.
            pub fn source(self) -> &'static str {
                match self {
                    $($(Self::$name => $source,)*)*
                }
            }
        }
    };
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())
    }
}

rules! {
    [KNOWLEDGE_PROVIDER: "The rules of a KnowledgeSyncProviderService, in the order of the report."]

    // The wire.
    Answers = "D-ANSWERS", "design 4, Lease", "every call is answered in time, and the connection lasts";
    Wire = "D-WIRE", "proto/synclave/v1", "every answer is complete and well-formed";
    ErrorInfo = "D-ERROR-INFO", "contract, Errors", "a refusal carries google.rpc.ErrorInfo of domain winsync or synclave";
    UnknownFields = "D-UNKNOWN-FIELDS", "proto3", "fields that the provider does not know are passed over";
    Malformed = "D-MALFORMED", "contract, Errors", "a malformed request is refused with INVALID_ARGUMENT";
    ChangeFlags = "E8-FLAGS", "windows-sync.md E8", "a change with an unknown flag bit is refused with E_INVALIDARG";
    Alive = "D-ALIVE", "design 11", "after malformed input the provider goes on as before";

    // Who the provider is.
    Schema = "R1", "windows-sync.md R1", "the id schema is constant, and all ids fit it";
    Instance = "D-INSTANCE", "design 4, Reconnect", "instance_id and replica_id stay the same while the process lives";

    // The life of a session.
    Enlists = "R2-BEGIN", "windows-sync.md R2", "an idle provider takes BeginSession, and answers EndSession";
    OnlyInSession = "R2", "windows-sync.md R2", "outside a session only GetIdParameters is answered";
    BeginTwice = "R3", "windows-sync.md R3, E8", "BeginSession of a session that has begun is SYNC_E_INVALID_OPERATION";
    EndWithoutBegin = "R4", "windows-sync.md R4, E8", "EndSession without its BeginSession is SYNC_E_INVALID_OPERATION";
    EndForgets = "R5", "windows-sync.md R5", "after EndSession calls of the session are SYNC_E_INVALID_OPERATION";
    TokenDead = "R5-TOKEN", "windows-sync.md R5; proto, SessionStateService", "once EndSession is answered the session's token is not used any more";
    StateCalls = "D-STATE-CALLS", "proto, SessionStateService", "calls of SessionStateService are well-formed, and name a session by the token that it was given";
    OneDirection = "R6", "windows-sync.md R6", "calls of the other role are SYNC_E_INVALID_OPERATION";
    EndOfOther = "E8-OTHER", "windows-sync.md E8", "EndSession of another session leaves this one alone";
    StaleEpoch = "D-EPOCH", "design 2; proto", "an epoch lower than the highest seen is ABORTED";
    LateBegin = "D-LATE-BEGIN", "design 4, Begin", "BeginSession of a session that has ended is SYNC_E_INVALID_OPERATION";
    Overtaken = "D-OVERTAKEN", "design 4, End", "BeginSession that its EndSession overtook is SYNC_E_INVALID_OPERATION";
    RenewUnknown = "D-RENEW", "design 4, Reconnect", "RenewSession of a session that is not current is SYNC_E_INVALID_OPERATION";
    LeaseRenewed = "D-LEASE-RENEWED", "design 4, Lease", "RenewSession, and any other call, keeps the lease";
    LeaseRunsOut = "D-LEASE", "design 4, Lease", "a session whose lease ran out is over: the next one begins";
    TwoSessions = "D-TWO-SESSIONS", "design 4, Admission", "a second session is taken within the limits, else refused; the first goes on";
    EndWaits = "D-END-WAITS", "design 4, End", "EndSession stops the work of its session, and is answered when none runs";
    Canceled = "D-CANCEL", "design 4, Cancel", "a cancel ends the application of a batch within a second";
    CanceledByRenewal = "D-CANCEL-RENEW", "design 4, Cancel", "`canceled` in RenewSession does the same";
    WorkAfterCancel = "E8-CANCEL", "windows-sync.md R10, E8", "work calls after a cancel are E_ABORT";
    NoRollBack = "R10", "windows-sync.md R10", "a cancel does not roll back: what was reported applied stays, and is known";

    // The source.
    SizeIsAWish = "R8", "windows-sync.md R8", "any requested_batch_size leads to the same changes";
    LastBatch = "R9", "windows-sync.md R9, 2.6", "is_last_batch is set on the batch after which nothing remains, and only there";
    Complete = "R16", "windows-sync.md R16, 5.10", "every change that the destination does not know is sent";
    NothingKnown = "WS-5.10", "windows-sync.md R16, 5.10", "no change that the destination knows is sent";
    Exceptions = "TV-02", "windows-sync.md TV-01, TV-02", "an exception that knows less makes its item, and no other, be sent";
    ExceptionsMore = "TV-07", "windows-sync.md TV-07", "an exception that knows more keeps its item from being sent";
    Ranges = "TV-08", "windows-sync.md TV-08", "a range that knows less makes its items, and no others, be sent";
    ReplicaKeys = "R13", "windows-sync.md R13, TV-19", "knowledge is read by its own replica key map";
    Representation = "R15", "windows-sync.md R15", "two representations of one knowledge mean the same";
    OwnTick = "R14", "windows-sync.md R14", "a replica's own ticks are in its knowledge";
    Order = "R23", "windows-sync.md R23", "items of an ordered group ascend within its bounds, and groups do not overlap";
    Duplicates = "WS-5.3", "windows-sync.md 5.3", "an item is in a batch once";
    InKnowledge = "WS-5.6", "windows-sync.md 5.6", "every version of a change is in its group's made-with knowledge";
    TombstoneShape = "R25", "windows-sync.md R25", "a deletion has the DELETED flag, and neither change units nor data";
    UnitVersions = "WS-4.3", "windows-sync.md 4.3", "a change has a version, or versions of its change units, never both";
    Prerequisite = "D-PREREQUISITE", "design 5", "the prerequisite is exactly the knowledge that the batch was asked with";
    MaxBytes = "D-MAX-BYTES", "design 5; proto", "an encoded batch stays under max_bytes";
    Inline = "D-INLINE", "proto", "inline data is within max_inline_bytes, and as announced";
    DataParts = "D-DATA", "proto", "data is header, chunks and end; size and SHA-256 are those of the content";
    Offset = "D-OFFSET", "proto", "a load from an offset gives the rest, and the size and digest of the whole";
    ExactVersion = "D-VERSION", "design 5", "another version than the current one is SYNC_E_DATA_MODIFIED_CONCURRENTLY, not data";
    NoDataOfTombstone = "WS-HAS-NO-DATA", "windows-sync.md 9.2", "a load of a deleted item gives an error, not data";
    ForgottenInBatch = "R18-BATCH", "windows-sync.md R18", "a source's forgotten knowledge is no more than it knows";

    // The destination.
    Applies = "WS-6.1", "windows-sync.md 6.1", "a change without a conflict is applied: created, updated, deleted";
    KeepsVersion = "WS-6.1-VERSION", "windows-sync.md 6.1, 6.6", "an applied change keeps the source's version and creation version";
    KeepsData = "WS-6.1-DATA", "windows-sync.md 6.6", "an applied item has the content that was sent";
    NoEcho = "E5", "windows-sync.md E5", "a change is not sent back to who knows it";
    Obsolete = "WS-6.1-OBSOLETE", "windows-sync.md 6.1", "a change that is known is OBSOLETE, and nothing is done";
    MustExist = "WS-6.1-MUST-EXIST", "windows-sync.md 6.1", "an update of an item whose creation is known but which is not there is an error";
    Outcomes = "D-OUTCOMES", "design 5", "there is exactly one outcome for each change";
    ResultLast = "D-RESULT", "proto", "one result ends the application, and nothing follows it";
    Statistics = "WS-2.10", "windows-sync.md 2.10", "statistics agree with the outcomes";
    LoadExact = "D-LOAD", "design 5", "data is asked for live changes of the batch, in the version that it names, by unique ids";
    LoadLimit = "D-LOAD-LIMIT", "design 5", "at most 64 loads are outstanding";
    Learned = "R20", "windows-sync.md R20, 4.8", "the destination learns exactly what it was taught and applied";
    NeverShrinks = "WS-4.8", "windows-sync.md 4.8", "knowledge never shrinks";
    Durable = "D-DURABLE", "design 5", "what a result says is known is known in the next session";
    FailedNotLearned = "R21", "windows-sync.md R21, E2", "what failed is not learned, and the rest goes on";
    FailedAgain = "E2", "windows-sync.md E2", "what failed is applied when it comes again in a later session";
    Interrupted = "E3", "windows-sync.md E3", "an ordered batch teaches its range, and nothing beyond";
    Skipped = "D-SKIPPED", "design 5, Skipped", "what was skipped in a session is not learned by its later batches";
    NeedsPrerequisite = "R19", "windows-sync.md R19, TV-18", "where the prerequisite is not known nothing is learned";
    OutOfDate = "R18", "windows-sync.md R18, 2.7", "an out-of-date destination aborts before it applies anything";
    ExceptionOutOfDate = "TV-20", "windows-sync.md TV-20, 4.9", "an exception that knows less is enough to be out of date";
    DigestChecked = "D-DIGEST", "design 5; proto", "content whose digest is not the announced one is not applied";
    SizeChecked = "D-SIZE", "design 5; proto", "content that ends early is not applied";
    LargeItems = "D-LARGE", "design 5", "8 MiB in chunks are applied, and given back, whole";

    // Conflicts.
    ConflictSeen = "R17", "windows-sync.md R17", "a conflict is reported exactly when the source did not know the destination's version";
    DestinationWins = "E1-DESTINATION", "windows-sync.md 6.2, E1", "DESTINATION_PROVIDER_WINS leaves the destination's content";
    SourceWins = "E1-SOURCE", "windows-sync.md 6.2, E1", "SOURCE_PROVIDER_WINS takes the source's content";
    Resolution = "D-RESOLUTION", "design 5, Resolution", "the resolution of a conflict gets a new local version";
    NothingDecided = "D-SAME", "design 5, Resolution", "where both sides have the same data the greater version stays, by tick and then replica id";
    Deferred = "R27", "windows-sync.md R27, 6.2", "policy NONE defers: nothing is applied and nothing learned";
    LastWriterWins = "D-LAST-WRITER", "contract", "LAST_WRITER_WINS takes the later modification time, whichever side has it";
    KeepBoth = "D-KEEP-BOTH", "design 6, Keep both", "KEEP_BOTH takes the later, and keeps the other beside it";
    UpdateDelete = "R28", "windows-sync.md R28, 6.1", "an update and a deletion are settled for the whole item, for the side that the policy names";
    EditBeatsDeletion = "D-EDIT", "design 6, Keep both", "where the policy names no side an edit beats a deletion";
    DeleteDelete = "WS-6.1-BOTH-DELETED", "windows-sync.md 6.1", "two deletions are no conflict";

    // Tombstones.
    TombstoneStored = "E1-TOMBSTONE", "windows-sync.md 5.7, 6.1, E1", "a deletion is stored and sent on, also of an item that was never here";
    NoReturn = "D-NO-RETURN", "issue C", "a deleted item does not come back by what was known before";
    CreatedAgain = "D-CREATED-AGAIN", "windows-sync.md 4.3; design 6", "a deleted item may be created again by a change that knows the deletion";
    WinnerKept = "WS-5.7", "windows-sync.md 5.7", "a merge tombstone is kept with the winner that it names, and sent on";

    // Change units.
    KeepsUnits = "WS-4.3-UNITS", "windows-sync.md 4.3", "an item keeps the version of each change unit, and takes those that are sent";
    UnitExceptions = "TV-03", "windows-sync.md TV-03, 5.10", "of an item with change units just those are sent that the destination does not know";
    UnitLoads = "D-UNIT-DATA", "proto; design 6", "a load of some change units gives those members of the JSON object, and no others";
    UnitLater = "WS-4.3-LATER", "windows-sync.md 4.3", "a change unit that came later counts as having the item's creation version before";
    UnitMerge = "E6", "windows-sync.md E6, 6.1", "changes of different units of an item are no conflict";
    UnitConflict = "E6-CONFLICT", "windows-sync.md E6, 6.1", "a conflict is about the units that both sides changed, and the others go on";
    UnitNotLearned = "R21-UNIT", "windows-sync.md R21, 6.5", "what is left out of one change unit is not learned of it, and is of the others";
    UnitCreation = "R22", "windows-sync.md R22", "the creation of an item fails as a whole, never in some of its change units";

    // Decisions about conflicts.
    Decision = "D-DECISION", "design, Conflicts; proto", "a decision about a deferred conflict is carried out for the versions that it names";
    StaleDecision = "D-DECISION-STALE", "design, Conflicts; proto", "versions that moved on make it a conflict anew, whatever was decided";
    DeferredSide = "D-DEFERRED", "proto", "what is said of the destination's side of a deferred conflict is what it has";

    // Collisions.
    Constraint = "WS-6.3", "windows-sync.md 6.3, E8", "what another item keeps from being saved is deferred, with the reason and that item";
    CollisionSource = "WS-6.3-SOURCE", "windows-sync.md 6.3", "decided for the source what is in the way is deleted, and the source's item is saved";
    CollisionDestination = "WS-6.3-DESTINATION", "windows-sync.md 6.3", "decided for the destination the source's item gets a tombstone, and what is in the way stays";
    RenamesSource = "WS-6.3-RENAME-SOURCE", "windows-sync.md 6.3", "decided to rename the source's item it is saved under another name, and what is in the way stays";
    RenamesDestination = "WS-6.3-RENAME-DESTINATION", "windows-sync.md 6.3", "decided to rename what is in the way it is kept under another name, and the source's item is saved";
    MergesItems = "R30", "windows-sync.md R30, 5.7", "of two that are merged the smaller id stays, and the other is a merge tombstone that names it";

    // Optional features.
    Recovery = "E4", "windows-sync.md E4, 4.9", "a full enumeration brings an out-of-date destination up to date";
    AbsentGoes = "E4-ABSENT", "windows-sync.md E4, 4.9", "an item that it does not list goes, without a tombstone, when the source knew its version";
    AbsentStays = "E4-STAYS", "windows-sync.md E4, 4.9", "an item that it does not list stays when the source never saw it";
    PassesForgotten = "E4-FORGOTTEN", "windows-sync.md E4, 4.7", "the destination's forgotten knowledge grows by the source's";
    PartialSync = "E4-PARTIAL", "windows-sync.md E4, 2.7", "a partial sync learns of the items that it applied, and of no others";
    FullEnumeration = "R24", "windows-sync.md R24, 4.9", "full enumeration gives every item from the lower bound on, in one ordered group";
    OneGroup = "R24-GROUP", "windows-sync.md R24, 5.4", "a full enumeration that is not one ordered group is refused";

    // Filters.
    FilterOnly = "WS-7", "windows-sync.md 7, 3.18", "a source with a list of items sends these items, and no others";
    FilterUnits = "WS-7-UNITS", "windows-sync.md 5.6, 7", "a source with a list of change units sends of each item these units, and no others";
    FilterTeaches = "WS-7-LEARNED", "windows-sync.md 5.6, 7", "of an item that a filter holds back a batch teaches nothing";
    FilterFlags = "WS-7-FLAGS", "windows-sync.md 7; proto", "a batch says what filtered it";
    FilterSpan = "D-FILTER", "proto", "a filter holds until the next one, and to the end of its session";
    FilterRefused = "WS-7-REFUSED", "windows-sync.md 7, 3.18", "a filter that a source does not know is SYNC_E_FILTER_NOT_SUPPORTED, and changes nothing";
    FilterRecovery = "WS-7-RECOVERY", "windows-sync.md 4.9, 7", "a list of items and a full enumeration do not go together";
    FilterApplied = "WS-7-APPLIED", "windows-sync.md 7", "a filtered batch is applied as any other";
    FilterWishes = "D-FILTER-WISHES", "proto", "what a destination wants is the same when it is asked again in the session";

    // Comparison and repair.
    DigestItem = "D-DIGEST-ITEM", "proto, ItemDigest", "an item is listed as it is, with the digest of its id, content and properties";
    DigestRange = "D-DIGEST-RANGE", "proto, RangeDigest", "the digest of a range is made of those of its items, and they are counted without deletions";
    DigestParts = "D-DIGEST-PARTS", "proto, GetRangeDigests", "the parts of a range follow each other without a gap, no more than asked for";
    DigestList = "D-DIGEST-LIST", "proto, GetRangeDigests", "the items of a part are listed where they are few enough, in ascending order";
    DigestChecksum = "D-DIGEST-CHECKSUM", "proto, GetRangeDigests", "content is read where that is asked for, and only there";
    DigestChanges = "D-DIGEST-CHANGES", "proto, GetRangeDigests", "the digest of a range changes with its items, and with nothing else";
    Repair = "D-REPAIR", "proto, RepairItems", "a sound item gets a new version and is sent with the content that it has, and no other item is";
    RepairLooks = "D-REPAIR-LOOKS", "proto, RepairItems", "what is not damaged is not given up, whatever was said of it";

    [SIMPLE_PROVIDER: "The rules of a SimpleSyncProviderService, in the order of the report."]

    // Simple stores: the wire.
    StoreAnswers = "S-ANSWERS", "design 6", "every call of a simple store is answered in time, and the connection lasts";
    StoreWire = "S-WIRE", "proto", "every answer of a simple store is complete and well-formed";
    StoreMessageSize = "S-MESSAGE-SIZE", "proto, SimpleItems", "a message stays under 4 MiB";
    StoreErrorInfo = "S-ERROR-INFO", "proto", "an ErrorInfo of domain synclave beside ABORTED says ITEM_CHANGED, beside FAILED_PRECONDITION ANCHOR_EXPIRED";
    StoreUnknownFields = "S-UNKNOWN-FIELDS", "proto3", "fields that the store does not know are passed over";
    StoreMalformed = "S-MALFORMED", "proto", "a malformed request is refused with INVALID_ARGUMENT, and nothing is done";
    StoreAlive = "S-ALIVE", "design 11", "after malformed input the store goes on as before";

    // Simple stores: who it is.
    StoreSchema = "S-SCHEMA", "proto, GetSchemaResponse", "the schema is constant, and within its bounds";
    StoreIdentity = "S-IDENTITY", "proto, GetSchemaResponse", "store_id and instance_id stay the same while the process lives";

    // Simple stores: lists.
    StoreComplete = "S-COMPLETE", "proto, EnumerateItems", "a list ends with `complete`, and nothing follows it";
    StoreAll = "S-ALL", "proto, EnumerateItems", "a list of all items has every item";
    StoreOnce = "S-ONCE", "proto, EnumerateItemsResponse", "an item is in a list once";
    StoreCurrent = "S-CURRENT", "proto, EnumerateItems", "a list has items as they are: none that is gone, none at a version that was replaced";
    StoreNoDeletions = "S-NO-DELETIONS", "proto, EnumerateItemsResponse", "a list of all items has no deletions";
    StoreStable = "S-STABLE", "proto, SimpleItem", "an item that has not changed keeps its version";
    StoreVersion = "S-VERSION", "proto, SimpleItem", "other data or properties have another version";
    StoreAnnounced = "S-ANNOUNCED", "proto, SimpleItem", "a size and a digest that are listed are those of the content";
    StoreDigests = "S-DIGESTS", "proto, GetSchemaResponse", "with supports_digests every item is listed with size and digest";
    StoreTimes = "S-TIMES", "proto, GetSchemaResponse", "with supports_digests an item is listed with the modification time that came with it";
    StoreProperties = "S-PROPERTIES", "proto, GetSchemaResponse", "with supports_properties an item is listed with the properties that came with it";

    // Simple stores: anchors.
    StoreAnchor = "S-ANCHOR", "proto, EnumerationComplete", "a list ends with an anchor exactly when the store supports anchors";
    StoreChanges = "S-CHANGES", "proto, EnumerateItems", "what was inserted, updated or deleted since an anchor is in the list of changes";
    StoreChangesDuring = "S-CHANGES-DURING", "proto, EnumerationComplete", "what changes while a list is made is in it, or in the changes since its anchor";
    StoreUnknownAnchor = "S-UNKNOWN-ANCHOR", "proto, EnumerateItems", "an anchor that the store does not know is refused with FAILED_PRECONDITION";

    // Simple stores: loads.
    StoreData = "S-DATA", "proto, LoadItem", "an item's data is header, chunks and end; size and SHA-256 are those of the content";
    StoreContent = "S-CONTENT", "proto, LoadItem", "an item has the content that was written last";
    StoreOffset = "S-OFFSET", "proto, LoadItemRequest", "a load from an offset gives the rest, and the size and digest of the whole";
    StoreLoadChanged = "S-LOAD-CHANGED", "proto, LoadItem", "a load of another version than the current one is refused with ABORTED";
    StoreLoadWhole = "S-LOAD-WHOLE", "proto, LoadItem", "an item that is replaced while it is loaded comes as it was, or the load ends with ABORTED";
    StoreNotFound = "S-NOT-FOUND", "proto, LoadItem, UpdateItem, DeleteItem", "a load, update or deletion of an item that is not there is refused with NOT_FOUND";

    // Simple stores: writes.
    StoreWrites = "S-WRITES", "proto", "an insert, update or deletion that is in order is done";
    StoreWrittenVersion = "S-WRITTEN-VERSION", "proto, InsertItemResponse", "the version that a write answers with is the one that is listed";
    StoreExists = "S-EXISTS", "proto, InsertItem", "an insert of an item that is there is refused with ALREADY_EXISTS, and the item stays as it is";
    StoreUpdateChanged = "S-UPDATE-CHANGED", "proto, UpdateItem", "an update of another version than the current one is refused with ABORTED, and the item stays as it is";
    StoreDeleteChanged = "S-DELETE-CHANGED", "proto, DeleteItem", "a deletion of another version than the current one is refused with ABORTED, and the item stays as it is";
    StoreAgain = "S-AGAIN", "proto, InsertItem", "an item that was deleted can be inserted again";
    StoreEnd = "S-END", "proto, InsertItem", "nothing is visible before the end of a write, and nothing without it";
    StoreCancel = "S-CANCEL", "proto, InsertItem", "a write that is broken off stores nothing, and holds nothing up";
    StoreDigestChecked = "S-DIGEST-CHECKED", "proto, ItemDataEnd", "content that is not as its end says is refused with INVALID_ARGUMENT, and nothing is stored";
    StoreEmpty = "S-EMPTY", "proto", "empty content is taken and given back, or refused";
    StoreLarge = "S-LARGE", "design 5", "8 MiB in chunks are stored, and given back, whole";

    // Simple stores: several clients.
    StoreClients = "S-CLIENTS", "design 6", "what one client has written every client sees";
    StoreAtTheEnd = "S-AT-THE-END", "proto, UpdateItem", "a write that is overtaken before its end is refused";
    StoreRace = "S-RACE", "proto, UpdateItem", "of two writes at the same time that expect the same, one is done and the other refused";

    // Simple stores: ids.
    StoreIdSize = "S-ID-SIZE", "proto, GetSchemaResponse", "an id of max_item_id_size bytes is taken, and a longer one refused";
    StoreIdBytes = "S-ID-BYTES", "proto, SimpleItem", "ids are told apart byte by byte";
}

#[cfg(test)]
mod tests;
