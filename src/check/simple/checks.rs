//! The checks of a simple store, by subject.

use super::bench::Bench;
use crate::check::rule::Rule;
use crate::check::suite::checks;

mod anchors;
mod clients;
mod ids;
mod lists;
mod loads;
mod malformed;
mod refusals;
mod schema;
mod writes;

/// What every check builds on. Where one of these is broken all others would show it again, each as if it were its own.
pub(super) const PLAIN_USE: &[Rule] = &[
    Rule::StoreWire,
    Rule::StoreComplete,
    Rule::StoreAll,
    Rule::StoreOnce,
    Rule::StoreCurrent,
    Rule::StoreNoDeletions,
    Rule::StoreStable,
    Rule::StoreVersion,
    Rule::StoreAnnounced,
    Rule::StoreData,
    Rule::StoreContent,
    Rule::StoreWrites,
    Rule::StoreWrittenVersion,
];

checks! {
    Bench:
    schema::identity [StoreSchema, StoreIdentity];
    lists::all [StoreAll, StoreCurrent, StoreWrites, StoreContent];
    lists::digests [StoreDigests, StoreTimes];
    lists::properties [StoreProperties];
    clients::two [StoreClients];
    loads::offsets [StoreOffset];
    loads::another_version [StoreLoadChanged];
    refusals::absent [StoreNotFound];
    refusals::exists [StoreExists];
    refusals::update_of_another_version [StoreUpdateChanged];
    refusals::deletion_of_another_version [StoreDeleteChanged];
    writes::again [StoreAgain];
    writes::unended [StoreEnd];
    writes::broken_off [StoreCancel] after [StoreEnd];
    writes::corrupt [StoreDigestChecked] after [StoreEnd];
    writes::empty [StoreEmpty];
    writes::large [StoreLarge];
    loads::replaced_meanwhile [StoreLoadWhole] after [StoreLarge, StoreMessageSize, StoreClients];
    anchors::changes [StoreChanges] after [StoreAnchor, StoreAgain];
    anchors::changes_during_a_list [StoreChangesDuring] after [StoreAnchor, StoreChanges, StoreClients];
    anchors::unknown [StoreUnknownAnchor] after [StoreAnchor];
    clients::overtaken [StoreAtTheEnd] after [StoreExists, StoreUpdateChanged, StoreEnd];
    clients::races [StoreRace] after [StoreExists, StoreUpdateChanged, StoreAgain, StoreClients, StoreAtTheEnd];
    ids::bytes [StoreIdBytes] after [StoreExists];
    malformed::unknown_fields [StoreUnknownFields];
    malformed::requests [StoreMalformed, StoreAlive] after [StoreNotFound];
    ids::longest [StoreIdSize] after [StoreMalformed];
    schema::identity [StoreIdentity];
}
