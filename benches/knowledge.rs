//! Operations on knowledge of 1,000 to 1,000,000 ranges, and how they grow.
//!
//! `cargo bench --bench knowledge` prints the time of one operation and, behind it, how much more it takes than with a tenth of
//! the ranges: about 1 for what is O(log n), about 10 for what is linear. `-- --short` stops at 10,000 ranges. Every second
//! item has a vector of its own kind, so that no neighbours merge; replicas are three.

mod support;

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message as _;
use support::mode::Mode;
use support::table::{Table, span};
use synclave::grpc::convert::knowledge::{encode_knowledge, knowledge};
use synclave::grpc::convert::{Path, decode};
use synclave::knowledge::{ClockVector, IdFormat, IdParameters, ItemId, Knowledge, ReplicaId, Selection, Version};
use synclave::pb;
use synclave::provider::MAX_KNOWLEDGE_BYTES;

const FORMAT: IdFormat = IdFormat::Variable(4096);

fn replica(number: u8) -> ReplicaId {
    ReplicaId::from(vec![number; 16])
}

fn item(number: usize) -> ItemId {
    ItemId::from(format!("{number:06x}").into_bytes())
}

/// So many ranges: items with one of four vectors in turn, and what is between them. `shift` makes another one of it.
fn with_ranges(ranges: usize, shift: u64) -> Knowledge {
    let vectors: Vec<Arc<ClockVector>> =
        (0..4).map(|kind| Arc::new((1..=3).map(|number| (replica(number), 1_000 + shift + kind)).collect())).collect();
    // Each item is a range, and so is the gap behind it.
    let items = (0..ranges / 2).map(|number| (item(number), Arc::clone(&vectors[number % 4])));
    Knowledge::from_items(FORMAT, items)
}

/// Seconds of one call: the best of batches that take 2 ms or one call. The others had a neighbour.
fn time<T>(budget: Duration, mut call: impl FnMut(usize) -> T) -> f64 {
    let start = Instant::now();
    black_box(call(0));
    let once = start.elapsed().as_secs_f64().max(1e-9);
    let calls = ((2e-3 / once) as usize).clamp(1, 100_000);
    let (start, mut best) = (Instant::now(), f64::MAX);
    for batches in 0..1_000 {
        let batch = Instant::now();
        for number in 0..calls {
            black_box(call(number));
        }
        best = best.min(batch.elapsed().as_secs_f64() / calls as f64);
        if batches >= 4 && start.elapsed() >= budget || start.elapsed() >= 4 * budget {
            break;
        }
    }
    best
}

fn main() {
    let mode = Mode::from_arguments();
    let sizes: &[usize] = mode.pick(&[1_000, 10_000, 100_000, 1_000_000], &[1_000, 10_000]);
    let budget = mode.pick(Duration::from_millis(600), Duration::from_millis(20));
    let names = [
        "contains one version (O(log n))",
        "vector of an item (O(log n))",
        "project onto an item (O(log n))",
        "project onto 100 items (O(m log n))",
        "contains another, equal (linear)",
        "union with another (linear)",
        "project onto a range of half (linear)",
        "learned: all but 100 failed (linear)",
        "encode to the wire (linear)",
        "decode from the wire (linear)",
    ];
    let mut times: Vec<Vec<Option<f64>>> = vec![Vec::new(); names.len()];
    for &ranges in sizes {
        let (one, other) = (with_ranges(ranges, 0), with_ranges(ranges, 1));
        assert!(one.range_count().abs_diff(ranges) <= 2, "{} ranges", one.range_count());
        let versions: Vec<_> = (0..3).map(|number| Version::new(replica(number + 1), 1_002)).collect();
        // Far apart and in no order, made beforehand.
        let asked: Vec<ItemId> = (0..1_024).map(|number| item(number * 7_919 % (ranges / 2))).collect();
        let at = |number: usize| &asked[number % asked.len()];
        let failed: Selection = asked[..100].iter().cloned().collect();
        let (lower, upper) = (item(0), item(ranges / 4));
        let learned = || {
            let mut learned = one.clone();
            learned.exclude(&failed);
            learned.project_with_prerequisite(&one, &one)
        };
        let mut figures = vec![
            Some(time(budget, |number| one.contains_change(at(number), &versions[number % 3]))),
            Some(time(budget, |number| Arc::clone(one.vector_for_item(at(number))))),
            Some(time(budget, |number| one.project_onto_item(at(number)))),
            Some(time(budget, |_| one.project_onto_items(&asked[..100]))),
            Some(time(budget, |_| one.contains(&one))),
            Some(time(budget, |_| one.union(&other))),
            Some(time(budget, |_| one.project_onto_range(&lower, Some(&upper)))),
            Some(time(budget, |_| learned())),
        ];
        // A message holds so much; more ranges are refused.
        match encode_knowledge(&one, None) {
            Err(_) => figures.extend([None, None]),
            Ok(encoded) => {
                figures
                    .push(Some(time(budget, |_| encode_knowledge(&one, None).expect("small enough").encode_to_vec())));
                let encoded = Bytes::from(encoded.encode_to_vec());
                let back = |_| {
                    let message = pb::Knowledge::decode(encoded.clone()).expect("ours");
                    decode(|violations| knowledge(message, &IdParameters::BUILT_IN, Path::ROOT, violations))
                };
                assert_eq!(back(0).expect("ours").range_count(), one.range_count());
                figures.push(Some(time(budget, back)));
            }
        }
        for (times, figure) in times.iter_mut().zip(figures) {
            times.push(figure);
        }
    }

    let title = format!("knowledge: time of an operation (x: to that with a tenth of the ranges){}", mode.note());
    let heads: Vec<String> = sizes.iter().map(|size| format!("{size} ranges")).collect();
    let head: Vec<&str> = std::iter::once("operation").chain(heads.iter().map(String::as_str)).collect();
    let mut table = Table::new(title, &head);
    for (name, times) in names.iter().zip(times) {
        let cells = times.iter().enumerate().map(|(index, time)| {
            let before = index.checked_sub(1).and_then(|index| times[index]);
            match (time, before) {
                (None, _) => format!("over {} MiB", MAX_KNOWLEDGE_BYTES >> 20),
                (Some(time), None) => span(*time),
                (Some(time), Some(before)) => format!("{} ({:.1}x)", span(*time), time / before),
            }
        });
        table.row(std::iter::once((*name).to_owned()).chain(cells));
    }
    table.print();
}
