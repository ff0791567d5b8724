//! Dependencies point down only: every `use crate::…` of a module names a layer that is not above it, and the pure layers
//! know neither the runtime nor the wire.

use std::fs;
use std::path::{Path, PathBuf};

/// From low to high. A module belongs to the first layer whose path it is in; a layer may use itself and what is below it.
const LAYERS: &[&[&str]] = &[
    &["types"],
    &["knowledge"],
    &["provider"],
    &["verify"],
    &["referee"],
    &["store"],
    &["sync_info"],
    &["session"],
    &["operation", "replication"],
    &["pb"],
    &["grpc"],
    &["http"],
    &["config", "metrics", "server", "shutdown", "telemetry"],
    &["check", "cli"],
];

/// A provider is written against the same few modules wherever it lives.
const FOR_PROVIDERS: &[&str] = &["types", "knowledge", "provider", "providers"];

/// The wire.
const WIRE: &[&str] = &["tonic", "tonic_types", "prost", "prost_types", "prost_reflect"];

/// The runtime, and what comes with it.
const RUNTIME: &[&str] = &["tokio", "tokio_stream", "tokio_util", "tracing"];

/// Crates that a module must not name.
const FORBIDDEN: &[(&[&str], &[&str])] = &[
    (&["types", "knowledge"], RUNTIME),
    (&["types", "knowledge", "provider", "providers", "referee", "store", "sync_info", "session", "operation"], WIRE),
];

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|modules| modules.contains(&module))
}

fn may_use(module: &str, used: &str) -> bool {
    if module == "providers" {
        return FOR_PROVIDERS.contains(&used);
    }
    match (layer(module), layer(used)) {
        (Some(own), Some(other)) => other <= own,
        // The built-in providers are put together at the top.
        (Some(own), None) if used == "providers" => Some(own) >= layer("server"),
        _ => true,
    }
}

/// The first segment of each path that follows `prefix` in `line`, such as `crate::` or nothing; both sides of a `{a, b}`.
fn segments<'a>(line: &'a str, prefix: &str) -> Vec<&'a str> {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let mut found = Vec::new();
    for (at, _) in line.match_indices(prefix) {
        if line[..at].ends_with(is_name) {
            continue;
        }
        let rest = &line[at + prefix.len()..];
        match rest.strip_prefix('{') {
            None => found.push(rest.split(|c| !is_name(c)).next().unwrap_or_default()),
            Some(group) => {
                let mut depth = 0;
                let mut fresh = true;
                for (from, c) in group.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => fresh = true,
                        c if fresh && is_name(c) => {
                            found.push(group[from..].split(|c| !is_name(c)).next().unwrap_or_default());
                            fresh = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    found
}

/// Breaches in the text of a file of `module`.
fn breaches(module: &str, text: &str) -> Vec<String> {
    let mut code = String::new();
    for line in text.lines().map(str::trim_start).filter(|line| !line.starts_with("//")) {
        code.push_str(line);
        // One line for each statement, so that a list of names may go over several lines.
        code.push(if line.ends_with(';') { '\n' } else { ' ' });
    }
    let mut found = Vec::new();
    for line in code.lines() {
        for used in segments(line, "crate::") {
            if !may_use(module, used) {
                found.push(format!("{module} must not use crate::{used}"));
            }
        }
        for (_, crates) in FORBIDDEN.iter().filter(|(modules, _)| modules.contains(&module)) {
            for name in crates.iter().filter(|name| !segments(line, &format!("{name}::")).is_empty()) {
                found.push(format!("{module} must not use {name}"));
            }
        }
    }
    found
}

fn rust_files(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("the sources are readable") {
        let path = entry.expect("the sources are readable").path();
        if path.is_dir() {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

#[test]
fn dependencies_point_down() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&root, &mut files);
    let mut found = Vec::new();
    for file in &files {
        let inside = file.strip_prefix(&root).expect("found there");
        let first = Path::new(inside.iter().next().expect("a file has a name"));
        let module = first.file_stem().expect("a module has a name").to_string_lossy();
        let text = fs::read_to_string(file).expect("the sources are UTF-8");
        found.extend(breaches(&module, &text).into_iter().map(|breach| format!("{}: {breach}", inside.display())));
    }
    assert!(files.len() > 10, "the sources were found");
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn a_breach_is_found() {
    for (module, line) in [
        ("knowledge", "use crate::session::State;"),
        ("knowledge", "use tokio::sync::mpsc;"),
        ("knowledge", "use prost_types::Timestamp;"),
        ("types", "use crate::knowledge::ItemId;"),
        ("session", "use crate::{\n    types::SyncGuid,\n    grpc::Client,\n};"),
        ("session", "    let code = tonic::Code::Ok;"),
        ("store", "pub use crate::pb;"),
        ("referee", "use crate::store::Record;"),
        ("providers", "use crate::store::Record;"),
        ("session", "use crate::providers::file;"),
    ] {
        assert_eq!(breaches(module, line).len(), 1, "{module}: {line}");
    }
}

#[test]
fn a_look_down_is_no_breach() {
    for (module, line) in [
        ("session", "use crate::{provider::Provider, types::{SyncGuid, Epoch}};"),
        ("providers", "use crate::provider::sdk::ItemStore;"),
        ("cli", "use crate::providers::file;"),
        ("session", "use tokio::sync::mpsc;"),
        ("session", "// use crate::grpc::Client;"),
        ("knowledge", "use crate::knowledge::{session::X, grpc::Y};"),
        ("session", "use crate::a_module_to_come::Thing;"),
        ("session", "let x = my_tonic::call();"),
    ] {
        assert_eq!(breaches(module, line), Vec::<String>::new(), "{module}: {line}");
    }
}
