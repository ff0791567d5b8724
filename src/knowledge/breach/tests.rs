use super::*;
use crate::knowledge::IdFormat;
use crate::knowledge::fixtures::*;

#[track_caller]
fn refused(groups: Vec<ChangeGroup>, hresult: Hresult) {
    let breach = batch(&all(&[]), groups).check(&SCHEMA).expect_err("the batch breaks a rule");
    assert_eq!(breach.hresult(), hresult, "{breach}");
}

fn a(tick: u64) -> Version {
    version("A", tick)
}

fn m() -> Knowledge {
    all(&[("A", 10)])
}

#[test]
fn honest_batches_pass() {
    let groups = vec![
        ordered("", Some("i5"), &m(), vec![change("i2", a(2)), deletion("i5", a(1), a(3))]),
        ordered("i6", None, &m(), vec![unit_change("i6", a(1), &[("c1", a(4)), ("c2", a(5))])]),
        unordered(false, &m(), vec![change("i9", a(6)), change("i1", a(7))]),
    ];
    assert_eq!(batch(&all(&[]), groups).check(&SCHEMA), Ok(()));
    assert_eq!(batch(&all(&[]), Vec::new()).check(&SCHEMA), Ok(()));
}

#[test]
fn order_and_bounds() {
    let out_of_order = Hresult::SYNC_E_RANGE_OUT_OF_ORDER;
    refused(vec![ordered("", None, &m(), vec![change("i5", a(1)), change("i3", a(2))])], out_of_order);
    refused(vec![ordered("", Some("i4"), &m(), vec![change("i5", a(1))])], out_of_order);
    refused(vec![ordered("i4", None, &m(), vec![change("i3", a(1))])], out_of_order);
    refused(vec![ordered("i4", Some("i3"), &m(), Vec::new())], out_of_order);
    refused(vec![ordered("", None, &m(), Vec::new()), ordered("i3", None, &m(), Vec::new())], out_of_order);
    refused(vec![ordered("i4", Some("i5"), &m(), Vec::new()), ordered("i5", None, &m(), Vec::new())], out_of_order);
}

#[test]
fn duplicates() {
    let duplicate = Hresult::SYNC_E_DUPLICATE_ITEM;
    let twice = || vec![change("i1", a(1)), change("i1", a(2))];
    refused(vec![ordered("", None, &m(), twice())], duplicate);
    refused(vec![unordered(false, &m(), twice())], duplicate);
    let one = || vec![change("i1", a(1))];
    refused(vec![unordered(false, &m(), one()), unordered(false, &m(), one())], duplicate);
    refused(vec![ordered("", None, &m(), one()), unordered(false, &m(), one())], duplicate);
    refused(vec![unordered(false, &m(), vec![unit_change("i1", a(1), &[("c", a(2)), ("c", a(3))])])], duplicate);
}

#[test]
fn versions_outside_the_made_with_knowledge() {
    let outside = Hresult::SYNC_E_CHANGE_NOT_IN_KNOWLEDGE;
    refused(vec![unordered(false, &m(), vec![change("i1", a(11))])], outside);
    refused(vec![unordered(false, &m(), vec![change("i1", version("B", 1))])], outside);
    refused(vec![unordered(false, &m(), vec![change("i1", a(0))])], outside);
    refused(vec![unordered(false, &m(), vec![unit_change("i1", a(1), &[("c", a(11))])])], outside);
    let exception = except(&m(), "i1", &[("A", 3)]);
    refused(vec![unordered(false, &exception, vec![change("i1", a(4))])], outside);
}

#[test]
fn ids_of_another_schema() {
    let mismatch = Hresult::SYNC_E_ID_FORMAT_MISMATCH;
    let long = "a name of more than sixteen bytes";
    refused(vec![unordered(false, &m(), vec![change("", a(1))])], mismatch);
    refused(vec![unordered(false, &m(), vec![change(long, a(1))])], mismatch);
    refused(vec![unordered(false, &m(), vec![change("i1", version(long, 1))])], mismatch);
    refused(vec![unordered(false, &m(), vec![unit_change("i1", a(1), &[(long, a(1))])])], mismatch);
    refused(vec![unordered(false, &all(&[(long, 1)]), Vec::new())], mismatch);
    refused(vec![ordered(long, None, &m(), Vec::new())], mismatch);
    refused(vec![ordered("", Some(""), &m(), Vec::new())], mismatch);
    refused(vec![unordered(false, &Knowledge::new(IdFormat::Fixed(2)), Vec::new())], mismatch);
    let merged = ItemChange { winner_item_id: Some(item(long)), ..deletion("i1", a(1), a(2)) };
    refused(vec![unordered(false, &m(), vec![merged])], mismatch);
}

#[test]
fn versions_and_change_units_exclude_each_other() {
    let units = || unit_change("i1", a(1), &[("c", a(2))]);
    let deleted = ItemChange { flags: crate::knowledge::ChangeFlags::DELETED, ..units() };
    refused(vec![unordered(false, &m(), vec![deleted])], Hresult::SYNC_E_INVALID_OPERATION);
    let both = ItemChange { change_version: Some(a(2)), ..units() };
    refused(vec![unordered(false, &m(), vec![both])], Hresult::SYNC_E_ITEM_HAS_CHANGE_UNITS);
    let neither = ItemChange { change_version: None, ..change("i1", a(1)) };
    refused(vec![unordered(false, &m(), vec![neither])], Hresult::SYNC_E_ITEM_HAS_NO_VERSION_DATA);
}
