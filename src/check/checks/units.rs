//! Change units, where the provider has them (`windows-sync.md` 4.3, 5.10, 6.1, E6, R21, R22, R28).

use serde_json::Value;

use crate::check::bench::Bench;
use crate::check::book::{Held, Stop};
use crate::check::conversation::{Answer, Applied};
use crate::check::divided::{Divided, name, object_of, unit};
use crate::check::partner::Change;
use crate::check::rule::Rule;
use crate::check::scenario::Seen;
use crate::check::session::{Ask, Loaded};
use crate::knowledge::{ItemChange, Knowledge, OutcomeKind, Version};
use crate::types::{ConflictResolutionPolicy as Policy, ProviderRole};

/// Creates an item, and changes one of its units.
pub(super) async fn versions(bench: &Bench) -> Held {
    let partner = bench.partner(0)?;
    let (first, [one, _]) = bench.create_divided(&partner, "divided").await?;
    bench.is_as_divided(&bench.look_at(&first.item).await?, &first)?;
    let second = first.with(&one, "changed alone", &partner.next());
    bench.update_units(&second, &[&one]).await?;
    bench.is_as_divided(&bench.look_at(&first.item).await?, &second)
}

/// An item of which both units were changed since it was created, one after the other.
pub(super) async fn changed_twice(bench: &Bench, text: &str) -> Held<(Divided, [String; 2])> {
    let partner = bench.partner(0)?;
    let (first, [one, two]) = bench.create_divided(&partner, text).await?;
    let second = first.with(&one, "changed first", &partner.next());
    bench.update_units(&second, &[&one]).await?;
    let third = second.with(&two, "changed second", &partner.next());
    bench.update_units(&third, &[&two]).await?;
    bench.is_as_divided(&bench.look_at(&first.item).await?, &third)?;
    Ok((third, [one, two]))
}

/// What one knowledge is sent of an item, beside nothing else.
async fn sent_of(bench: &Bench, known: &Knowledge, divided: &Divided) -> Held<Vec<String>> {
    let session = bench.begin(ProviderRole::Source).await?;
    let mut changes = session.enumerate(known, Ask::default()).await?.changes;
    session.end().await?;
    let change: Option<ItemChange> = changes.remove(&divided.item);
    let change = change.ok_or_else(|| Stop::Broken {
        rule: Rule::Complete,
        message: format!("item {} was not sent to a destination that lacks a unit of it", divided.item),
    })?;
    Ok(change.change_units.into_iter().map(|unit| name(&unit.change_unit_id)).collect())
}

/// Knowledge with exceptions for single units (TV-03).
pub(super) async fn exceptions(bench: &Bench) -> Held {
    let rule = Rule::UnitExceptions;
    let (divided, [one, two]) = changed_twice(bench, "units that are known").await?;
    let known = bench.knowledge().await?;
    let item = &divided.item;
    let mut without = known;
    without.exclude_item(item);
    // The item as a whole is known, or a source would have to say of all units that they are there.
    let up_to = |version: &Version| Ok(without.union(&divided.known_up_to(bench, [version])?));
    let mut but_one: Knowledge = up_to(&divided.versions[&two])?;
    but_one.exclude_change_unit(item, &unit(&one));
    for (what, known, units) in [
        ("everything but a unit", but_one, vec![&one]),
        ("the item as it was created", up_to(&divided.creation)?, vec![&one, &two]),
        ("the item up to the change of its first unit", up_to(&divided.versions[&one])?, vec![&two]),
    ] {
        let sent = sent_of(bench, &known, &divided).await?;
        bench.require(rule, sent.iter().eq(units.iter().copied()), || {
            format!("a destination that knows {what} lacks {units:?} of item {item}, and was sent {sent:?}")
        })?;
    }
    Ok(())
}

/// LoadChangeData with change_unit_ids.
pub(super) async fn loads(bench: &Bench) -> Held {
    let rule = Rule::UnitLoads;
    let (divided, [one, two]) = changed_twice(bench, "units that are loaded").await?;
    let item = &divided.item;
    let mut known = bench.knowledge().await?;
    known.exclude_item(item);
    let session = bench.begin(ProviderRole::Source).await?;
    let keys = session.batch(&known, Ask::default()).await?.keys;
    for asked in [vec![&one], vec![&two], vec![&one, &two]] {
        let version = keys.encode_version(&divided.versions[asked[0]]).ok_or(Stop::Blocked)?;
        let mut request = session.load_request(item, version, 0);
        request.change_unit_ids = asked.iter().map(|member| bytes::Bytes::copy_from_slice(member.as_bytes())).collect();
        let loaded = session.load_of(request, item, 0).await?;
        let object = match &loaded {
            Loaded::Data { content, .. } => object_of(content),
            Loaded::Error(_) => None,
        };
        let wanted = asked.iter().map(|member| ((*member).clone(), divided.object[*member].clone())).collect();
        bench.require(rule, object.as_ref() == Some(&wanted), || {
            format!("a load of the units {asked:?} of item {item} is to give {wanted:?}, and gave {loaded:?}")
        })?;
    }
    session.end().await
}

/// A change of some units by a replica that has heard of these versions of the item, and of nothing else.
pub(super) async fn bring_units(
    bench: &Bench,
    policy: Policy,
    heard: &[&Version],
    divided: &Divided,
    members: &[&String],
) -> Held<Applied> {
    let change = bench.change_of_units(divided, members.iter().copied())?;
    let made_with = divided.known_up_to(bench, heard.iter().copied())?;
    bench.bring(policy, made_with, &[change]).await
}

fn is_no_conflict(bench: &Bench, rule: Rule, applied: &Applied, divided: &Divided) -> Held {
    let outcome = applied.outcome(&divided.item)?;
    bench.require(rule, outcome.kind == OutcomeKind::Applied && !outcome.conflict, || {
        let (kind, conflict, error) = (outcome.kind, outcome.conflict, &outcome.error);
        format!("a change of item {} came to {kind:?}, conflict = {conflict}: {error:?}", divided.item)
    })
}

/// A unit that the item did not have when it was created.
pub(super) async fn later_unit(bench: &Bench) -> Held {
    let (ours, theirs) = (bench.partner(0)?, bench.partner(1)?);
    let (first, _) = bench.create_divided(&ours, "before a later unit").await?;
    if !bench.sample()?.takes_new_members() {
        return Err(Stop::NotOffered("items of this store have no room for another member".to_owned()));
    }
    let later = "synclave-later".to_owned();
    let version = theirs.next();
    let second = first.with(&later, "came later", &version);
    let applied = bring_units(bench, Policy::None, &[&first.creation, &version], &second, &[&later]).await?;
    is_no_conflict(bench, Rule::UnitLater, &applied, &first)?;
    bench.is_as_divided(&bench.look_at(&first.item).await?, &second)
}

/// An item of which the destination has got a change of the second unit, of which the other partner has not heard.
pub(super) async fn changed_here(bench: &Bench, text: &str) -> Held<(Divided, [String; 2])> {
    let ours = bench.partner(0)?;
    let (first, [one, two]) = bench.create_divided(&ours, text).await?;
    let here = first.with(&two, "changed here", &ours.next());
    bench.update_units(&here, &[&two]).await?;
    Ok((here, [one, two]))
}

/// E6: the source changed one unit, the destination another.
pub(super) async fn merge(bench: &Bench) -> Held {
    let theirs = bench.partner(1)?;
    let (here, [one, _]) = changed_here(bench, "merged").await?;
    let version = theirs.next();
    let merged = here.with(&one, "changed there", &version);
    let applied = bring_units(bench, Policy::None, &[&here.creation, &version], &merged, &[&one]).await?;
    is_no_conflict(bench, Rule::UnitMerge, &applied, &here)?;
    bench.is_as_divided(&bench.look_at(&here.item).await?, &merged)
}

/// Both sides changed one unit, and the source another one as well: deferred, and then for the source.
pub(super) async fn conflict(bench: &Bench) -> Held {
    let rule = Rule::UnitConflict;
    let theirs = bench.partner(1)?;
    let (here, [one, two]) = changed_here(bench, "in conflict").await?;
    let item = &here.item;
    let versions = [theirs.next(), theirs.next()];
    let rest = here.with(&one, "changed there alone", &versions[0]);
    let there = rest.with(&two, "changed there as well", &versions[1]);
    let heard = [&here.creation, &versions[1]];
    let applied = bring_units(bench, Policy::None, &heard, &there, &[&one, &two]).await?;
    let outcome = applied.outcome(item)?;
    bench.require(Rule::Deferred, outcome.kind == OutcomeKind::Deferred, || {
        format!("a conflict with policy NONE came to {:?}", outcome.kind)
    })?;
    bench.require(Rule::ConflictSeen, outcome.conflict, || {
        format!("both sides changed unit {two} of item {item}, and the outcome says no conflict")
    })?;
    bench.require(rule, outcome.failed_change_unit_ids == [unit(&two)], || {
        let left_out: Vec<_> = outcome.failed_change_unit_ids.iter().map(name).collect();
        format!("both sides changed unit {two} of item {item} alone, and what was left out is {left_out:?}")
    })?;
    let seen = bench.look_with(&applied.knowledge, &[item]).await?;
    bench.is_as_divided(&bench.sent(Rule::Complete, seen, item)?, &rest)?;

    let applied = bring_units(bench, Policy::SourceProviderWins, &heard, &there, &[&one, &two]).await?;
    let outcome = applied.outcome(item)?;
    bench.require(Rule::ConflictSeen, outcome.conflict, || {
        format!("unit {two} of item {item} is in conflict still, and the outcome says no conflict")
    })?;
    bench.require(Rule::Applies, outcome.kind == OutcomeKind::Applied, || {
        format!("a conflict that the policy settles came to {:?}: {:?}", outcome.kind, outcome.error)
    })?;
    let seen = bench.look_at(item).await?;
    let object = seen.content.as_ref().and_then(object_of).unwrap_or_default();
    bench.require(Rule::SourceWins, object.get(&two) == there.text(&two), || {
        format!("unit {two} of item {item} is to be the source's, and is {:?}", object.get(&two))
    })?;
    let own = bench.replica()?;
    let version_of = |member: &str| {
        let shown = seen.change.change_units.iter().find(|shown| shown.change_unit_id == unit(member));
        shown.map(|shown| shown.version.clone())
    };
    bench.require(Rule::Resolution, version_of(&two).is_some_and(|version| version.replica == own), || {
        format!("the resolution of unit {two} is to get a new version of {own}, and has {:?}", version_of(&two))
    })?;
    bench.require(rule, version_of(&one).as_ref() == Some(&versions[0]), || {
        format!("a conflict of unit {two} of item {item} gave unit {one} the version {:?}", version_of(&one))
    })
}

/// A unit that was changed on one side of an item that is deleted on the other.
pub(super) async fn update_and_deletion(bench: &Bench) -> Held {
    for policy in [Policy::None, Policy::DestinationProviderWins, Policy::SourceProviderWins] {
        let remote_wins = policy == Policy::SourceProviderWins;
        let (seen, here) = meet_deletion(bench, policy, true).await?;
        settled(bench, &seen, (!remote_wins).then_some(&here))?;
        let (seen, there) = meet_deletion(bench, policy, false).await?;
        settled(bench, &seen, remote_wins.then_some(&there))?;
    }
    Ok(())
}

/// The item as it is after the conflict of a changed unit and a deletion, and as it was on the side that changed it.
async fn meet_deletion(bench: &Bench, policy: Policy, deleted_there: bool) -> Held<(Seen, Divided)> {
    let (ours, theirs) = (bench.partner(0)?, bench.partner(1)?);
    let (first, [one, _]) = bench.create_divided(&ours, "an update and a deletion").await?;
    let item = &first.item;
    let (changer, deleter) = if deleted_there { (&ours, &theirs) } else { (&theirs, &ours) };
    let (change, deletion) = (changer.next(), deleter.next());
    let edited = first.with(&one, "changed, and deleted elsewhere", &change);
    let deletion = bench.deletion(item, &first.creation, &deletion);
    let edit = bench.change_of_units(&edited, [&one])?;
    let [here, there]: [Change; 2] = if deleted_there { [edit, deletion] } else { [deletion, edit] };
    bench.bring_plain(&[here]).await?;
    let made_with = first.known_up_to(bench, there.change.versions().chain([&first.creation]))?;
    let applied = bench.bring(policy, made_with, &[there]).await?;
    let outcome = applied.outcome(item)?;
    bench.require(Rule::ConflictSeen, outcome.conflict, || {
        format!("one side changed a unit of item {item} and the other deleted it, and the outcome says no conflict")
    })?;
    let defers = policy == Policy::None;
    bench.require(Rule::Deferred, !defers || outcome.kind == OutcomeKind::Deferred, || {
        format!("a conflict with policy NONE came to {:?}", outcome.kind)
    })?;
    let whole = outcome.failed_change_unit_ids.is_empty();
    bench.require(Rule::UpdateDelete, whole, || {
        let left_out: Vec<_> = outcome.failed_change_unit_ids.iter().map(name).collect();
        format!("one side deleted item {item}, and what was left out is not all of it: {left_out:?}")
    })?;
    let stays_deleted = deleted_there == (policy == Policy::SourceProviderWins);
    let rule = if stays_deleted { Rule::TombstoneStored } else { Rule::Complete };
    let seen = bench.look(&[item]).await?;
    Ok((bench.sent(rule, seen, item)?, edited))
}

/// Deleted, or there with all of its members.
fn settled(bench: &Bench, seen: &Seen, alive: Option<&Divided>) -> Held {
    let item = &seen.change.item_id;
    bench.require(Rule::UpdateDelete, seen.is_deleted() == alive.is_none(), || {
        let (is, other) = if seen.is_deleted() { ("deleted", "alive") } else { ("alive", "deleted") };
        format!("item {item} is to be {other} after an update and a deletion met, and is {is}")
    })?;
    let (Some(content), Some(alive)) = (&seen.content, alive) else { return Ok(()) };
    let object = object_of(content);
    let has = |name: &String, value: &Value| alive.object.get(name).is_none_or(|written| written == value);
    let as_written = object.as_ref().is_some_and(|object| object.iter().all(|(name, value)| has(name, value)));
    bench.require(Rule::KeepsData, as_written, || {
        format!("item {item} is to have the members of {:?}, and has {object:?}", alive.object)
    })?;
    bench.require(Rule::UpdateDelete, object.as_ref() == Some(&alive.object), || {
        format!("item {item} is to come whole after an update and a deletion met, and has {object:?}")
    })
}

/// The creation of an item whose data cannot be loaded.
pub(super) async fn failed_creation(bench: &Bench) -> Held {
    let rule = Rule::UnitCreation;
    let partner = bench.partner(0)?;
    // One that has no change units says so first.
    bench.create_divided(&partner, "created whole").await?;
    let (divided, _) = bench.new_divided(&partner, "not created in part")?;
    let change = bench.change_of_units(&divided, divided.versions.keys())?.answered_by(Answer::Error);
    let changes = [change];
    let applied = bench.bring(Policy::None, bench.own_versions(&changes)?, &changes).await?;
    let outcome = applied.outcome(&divided.item)?;
    bench.require(Rule::FailedNotLearned, outcome.kind == OutcomeKind::RecoverableError, || {
        format!("an item that cannot be loaded came to {:?}", outcome.kind)
    })?;
    let seen = bench.look_with(&applied.knowledge, &[&divided.item]).await?;
    bench.require(rule, !seen.contains_key(&divided.item), || {
        format!("the creation of item {} failed, and something of it is there", divided.item)
    })
}
