//! `docs/conformance.md` and the rules say the same.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

const DOCUMENT: &str = include_str!("../../../docs/conformance.md");

/// The rows of the tables of one section: the cells of each, without the head.
fn rows(section: &str) -> Vec<Vec<&'static str>> {
    let mut lines = DOCUMENT.lines().skip_while(|line| *line != section).skip(1).peekable();
    assert!(lines.peek().is_some(), "docs/conformance.md needs the section {section}");
    let table: Vec<&str> =
        lines.take_while(|line| !line.starts_with("## ")).filter(|line| line.starts_with('|')).collect();
    let is_ruler = |line: &str| line.starts_with("| ---");
    let cells = |line: &'static str| line.trim_matches('|').split('|').map(str::trim).collect();
    let is_head = |at: usize| table.get(at + 1).is_some_and(|next| is_ruler(next));
    (0..table.len()).filter(|at| !is_head(*at) && !is_ruler(table[*at])).map(|at| cells(table[at])).collect()
}

/// The ids of the reference: R1 to R30, TV-01 to TV-20, E1 to E8.
fn reference() -> BTreeSet<String> {
    let rules = (1..=30).map(|number| format!("R{number}"));
    let vectors = (1..=20).map(|number| format!("TV-{number:02}"));
    let scenarios = (1..=8).map(|number| format!("E{number}"));
    rules.chain(vectors).chain(scenarios).collect()
}

/// The ids of the reference that a row names, by its own id or as its source: `E8-FLAGS` is of E8.
fn named_in(rule: Rule) -> BTreeSet<String> {
    let reference = reference();
    let words = rule.source().split([' ', ',', ';']).chain([rule.id()]);
    let is_of = |word: &str, id: &String| {
        word.strip_prefix(id.as_str()).is_some_and(|rest| !rest.starts_with(char::is_numeric))
    };
    words.flat_map(|word| reference.iter().filter(move |id| is_of(word, id)).cloned()).collect()
}

#[test]
fn the_document_has_the_rules_in_their_order_and_no_others() {
    let documented = rows("## The rules");
    let rules: Vec<Vec<&str>> = Rule::ALL.iter().map(|rule| vec![rule.id(), rule.title(), rule.source()]).collect();
    for (at, rule) in rules.iter().enumerate() {
        let row = documented.get(at);
        assert_eq!(row, Some(rule), "row {at} of docs/conformance.md is to be | {} |", rule.join(" | "));
    }
    assert_eq!(documented.get(rules.len()), None, "docs/conformance.md has a row that is no rule's");
}

#[test]
fn every_id_of_the_reference_is_a_rules_or_has_a_reason_why_not() {
    let held: BTreeSet<String> = Rule::ALL.iter().flat_map(|rule| named_in(*rule)).collect();
    let rows = rows("## Rules that the kit does not hold a provider to");
    let reasons: BTreeMap<&str, &str> = rows.iter().map(|row| (row[0], row[1])).collect();
    assert_eq!(reasons.len(), rows.len(), "an id has two reasons");
    for id in reference() {
        let reason = reasons.get(id.as_str());
        assert!(held.contains(&id) || reason.is_some(), "{id} has neither a rule nor a reason why there is none");
        assert!(
            !(held.contains(&id) && reason.is_some()),
            "{id} has a rule, and a reason why there is none: {reason:?}"
        );
        assert!(reason.is_none_or(|reason| !reason.is_empty()), "the reason for {id} is empty");
    }
    let unknown = reasons.keys().find(|id| !reference().contains(**id));
    assert_eq!(unknown, None, "there is no such id in the reference");
}

#[test]
fn every_rule_has_an_id_of_its_own() {
    let mut ids: Vec<_> = Rule::ALL.iter().map(|rule| rule.id()).collect();
    ids.sort_unstable();
    let all = ids.len();
    ids.dedup();
    assert_eq!(ids.len(), all);
}
