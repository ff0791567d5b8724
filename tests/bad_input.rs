//! What is wrong is said in one line that helps, with the right exit code, and changes nothing; and Ctrl-C is an orderly end.

mod processes;

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use processes::content::Random;
use processes::services::{Client, FileProvider, Server};
use processes::tree::{self, STATE, assert_equal};
use processes::{PATIENCE, Process, Scratch, run, until};
use rustix::process::Signal;
use synclave::pb;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// A directory with one file in it.
fn filled(scratch: &Scratch, name: &str) -> std::path::PathBuf {
    let path = scratch.directory(name);
    fs::write(path.join("file"), name).expect("written");
    path
}

/// An address at which nobody listens.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    format!("http://{}", listener.local_addr().expect("bound"))
}

#[test]
fn a_path_that_is_not_there() {
    let scratch = Scratch::new();
    let a = filled(&scratch, "A");
    let (gone, below) = (scratch.path("gone"), scratch.path("gone/below"));
    for (one, other) in [(&gone, &a), (&a, &below)] {
        let refused = scratch.try_sync(one, other, &[]).ended.expect_code(2);
        refused.expect_line("gone");
        assert!(refused.stdout.is_empty());
    }
    scratch.try_sync(&a.join("file"), &scratch.path("B"), &[]).ended.expect_code(2).expect_line("file");
    run([Path::new("provider"), Path::new("file"), &gone]).expect_code(2).expect_line("gone");
    assert!(!gone.exists() && !scratch.path("B").exists() && !a.join(STATE).exists(), "nothing was made");
}

#[test]
fn a_wrong_command_line() {
    let scratch = Scratch::new();
    let a = filled(&scratch, "A");
    let b = scratch.path("B");
    scratch.try_sync(&a, &b, &["--conflict", "coin-toss"]).ended.expect_code(2).expect_line("coin-toss");
    scratch.try_sync(&a, &b, &["--no-such-flag"]).ended.expect_code(2).expect_line("--no-such-flag");
    run(["sync", "only one"]).expect_code(2).expect_line("synclave");
    run(["no-such-command"]).expect_code(2).expect_line("no-such-command");
    run(["serve", "--listen", "nowhere"]).expect_code(2).expect_line("nowhere");
    run(["serve", "--listen", "0.0.0.0:0"]).expect_code(2).expect_line("--insecure");
    run(["session", "list", "--server", "127.0.0.1:1"]).expect_code(2).expect_line("127.0.0.1:1");
    run(["--help"]).expect_code(0);
    run(["--version"]).expect_code(0);
    assert!(!b.exists() && !a.join(STATE).exists() && !scratch.path("data").exists(), "nothing was made");
}

#[test]
fn one_root_twice_and_roots_in_each_other() {
    let scratch = Scratch::new();
    let a = filled(&scratch, "A");
    fs::create_dir(a.join("inside")).expect("made");
    std::os::unix::fs::symlink(&a, scratch.path("link")).expect("made");
    let before = tree::read(&a);
    for (one, other, word) in [
        (a.clone(), a.clone(), "same"),
        (a.clone(), scratch.path("link"), "same"),
        (scratch.path("A/inside/.."), a.clone(), "same"),
        (a.clone(), a.join("inside"), "inside"),
        (a.join("inside"), a.clone(), "inside"),
        (scratch.path("link"), a.join("new"), "inside"),
    ] {
        scratch.try_sync(&one, &other, &[]).ended.expect_code(2).expect_line(word);
    }
    let address = nobody();
    scratch.try_sync(Path::new(&address), Path::new(&address), &[]).ended.expect_code(2).expect_line(&address);
    tree::assert_same(&before, &tree::read(&a), "A");
    assert!(!a.join(STATE).exists());
}

#[test]
fn a_port_that_is_taken() {
    let scratch = Scratch::new();
    let a = filled(&scratch, "A");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound").to_string();
    let data = scratch.path("data");
    let serve = ["serve".as_ref(), "--listen".as_ref(), address.as_ref(), "--data-dir".as_ref(), data.as_os_str()];
    run(serve).expect_code(1).expect_line(&address);
    let provider = ["provider".as_ref(), "file".as_ref(), a.as_os_str(), "--listen".as_ref(), address.as_ref()];
    run(provider).expect_code(1).expect_line(&address);
}

#[test]
fn a_place_that_is_in_use() {
    let scratch = Scratch::new();
    let (a, c) = (filled(&scratch, "A"), filled(&scratch, "C"));
    let b = scratch.path("B");
    let data = scratch.path("data");
    let server = Server::start(&data);
    let serve =
        ["serve".as_ref(), "--listen".as_ref(), "127.0.0.1:0".as_ref(), "--data-dir".as_ref(), data.as_os_str()];
    run(serve).expect_code(1).expect_line("data");
    scratch.try_sync(&a, &b, &[]).ended.expect_code(1).expect_line("data");
    assert!(!b.exists() || tree::read(&b).is_empty(), "nothing was carried");
    drop(server);

    let provider = FileProvider::start(&a);
    let name = a.file_name().expect("has one").to_str().expect("text");
    run([Path::new("provider"), Path::new("file"), &a]).expect_code(1).expect_line(name);
    scratch.try_sync(&a, &c, &[]).ended.expect_code(1).expect_line(name);
    scratch.try_sync(&c, &a, &[]).ended.expect_code(1).expect_line(name);
    assert_eq!((tree::read(&a).len(), tree::read(&c).len()), (1, 1), "nothing was carried");
    drop(provider);
    // The lock went with the process, though it was killed.
    scratch.sync(&a, &b, &[]);
    assert_equal(&a, &b);
}

#[test]
fn somebody_who_is_not_there() {
    let scratch = Scratch::new();
    let address = nobody();
    let a = filled(&scratch, "A");
    run(["session", "list", "--server", &address]).expect_code(1).expect_line(&address);
    run(["watch", "--server", &address]).expect_code(1).expect_line(&address);
    run(["health", "--server", &address]).expect_code(1).expect_line(&address);

    let server = Server::start(&scratch.path("data"));
    let provider = FileProvider::start(&a);
    for (source, destination, named) in
        [(&address, &provider.address, "SOURCE"), (&provider.address, &address, "DESTINATION")]
    {
        let failed = server.run(["session", "begin", source, destination, "--wait"]).expect_code(1);
        let session = &failed.json()["session"];
        assert_eq!(session["state"], "SYNC_STATE_IN_ERROR", "{session}");
        assert_eq!(session["providerWithError"], format!("PROVIDER_WITH_ERROR_{named}"), "{session}");
        assert_eq!(session["hresult"], 0x8007_06BA_u32, "unreachable: {session}");
        let sync_guid = session["syncGuid"].as_str().expect("a SyncGuid");
        let info = &server.sync_info(sync_guid, None)["dfsrSyncInfo"];
        assert_eq!((&info["lastErrorCode"], &info["lastErrorMessageId"]), (&0x8007_06BA_u32.into(), &5008.into()));
    }
    let start = ["operation", "start", &provider.address, &address, "--wait", "--max-attempts", "1"];
    let failed = server.run(start).expect_code(1).json();
    assert_eq!(failed["operation"]["state"], "OPERATION_STATE_FAILED", "{failed}");

    // The provider that was there was not kept: it is free for the next.
    let b = FileProvider::start(&filled(&scratch, "B"));
    server.session_in_sync(&provider.address, &b.address);

    for arguments in [
        ["session", "get", "01234567-89ab-cdef-0123-456789abcdef"],
        ["session", "cancel", "01234567-89ab-cdef-0123-456789abcdef"],
        ["operation", "get", "01234567-89ab-cdef-0123-456789abcdef"],
    ] {
        server.run(arguments).expect_code(1).expect_line("NOT_FOUND");
    }
}

/// The fields of a status that refuses a malformed request, without what follows an index or a dot.
#[track_caller]
fn violations(refused: Result<impl std::fmt::Debug, Status>) -> Vec<String> {
    let status = refused.expect_err("the request is malformed");
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let bad_request = status.get_details_bad_request().unwrap_or_else(|| panic!("no violations: {status:?}"));
    for violation in &bad_request.field_violations {
        assert!(!violation.description.is_empty(), "{violation:?}");
    }
    bad_request.field_violations.into_iter().map(|violation| violation.field).collect()
}

#[track_caller]
fn assert_fields(found: &[String], expected: &[&str]) {
    let missing: Vec<_> = expected.iter().filter(|field| !found.iter().any(|name| name.starts_with(**field))).collect();
    assert!(missing.is_empty() && found.len() == expected.len(), "{expected:?} are wrong, and not {found:?}");
}

fn span(seconds: i64, nanos: i32) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos })
}

fn address(text: &str) -> Option<pb::Endpoint> {
    Some(pb::Endpoint { target: Some(pb::endpoint::Target::Address(text.to_owned())) })
}

#[test]
fn a_request_with_every_field_wrong_gets_all_violations_at_once() {
    let scratch = Scratch::new();
    let server = Server::start(&scratch.path("data"));
    let client = Client::connect(&server.address);

    let start = pb::StartOperationRequest {
        request_id: "seven".into(),
        source: Some(pb::Endpoint::default()),
        destination: address("ftp://example.net"),
        direction: 99,
        conflict_resolution_policy: Some(3),
        full_enumeration_action: Some(7),
        allow_mass_delete: true,
        max_attempts: Some(0),
        max_sessions: Some(0),
        collision_conflict_resolution_policy: Some(3),
    };
    let all = [
        "request_id",
        "source",
        "destination",
        "direction",
        "conflict_resolution_policy",
        "full_enumeration_action",
        "collision_conflict_resolution_policy",
        "max_sessions",
    ];
    assert_fields(&violations(client.wait(client.operations().start_operation(start.clone()))), &all);
    let synchronize = pb::SynchronizeRequest { operation: Some(start) };
    let within = all.map(|field| format!("operation.{field}"));
    let refused = client.wait(client.operations().synchronize(synchronize));
    assert_fields(&violations(refused), &within.each_ref().map(String::as_str));

    let begin = pb::BeginSessionRequest {
        request_id: "01234567-89ab-cdef-0123-456789abcdeg".into(),
        kind: 9,
        source: None,
        destination: address("127.0.0.1"),
        conflict_resolution_policy: Some(-1),
        full_enumeration_action: Some(3),
        allow_mass_delete: true,
        lease: span(-1, 0),
        collision_conflict_resolution_policy: Some(3),
    };
    let mut fields = all[..7].to_vec();
    fields[3] = "kind";
    fields.push("lease");
    assert_fields(&violations(client.wait(client.sessions().begin_session(begin))), &fields);

    let list = pb::ListSessionsRequest {
        page_size: -1,
        page_token: String::new(),
        states: vec![4, 7, -1],
        operation_id: "x".into(),
    };
    let found = violations(client.wait(client.sessions().list_sessions(list)));
    assert_fields(&found, &["page_size", "states[1]", "states[2]", "operation_id"]);
    let page = pb::ListSessionsRequest { page_token: "made up".into(), ..Default::default() };
    let refused = client.wait(client.sessions().list_sessions(page)).expect_err("the token is none of ours");
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    let list = pb::ListOperationsRequest { page_size: i32::MIN, page_token: String::new() };
    assert_fields(&violations(client.wait(client.operations().list_operations(list))), &["page_size"]);

    let filter = pb::SyncInfoFilter {
        operation_ids: vec!["x".into()],
        sync_guids: vec!["01234567-89ab-cdef-0123-456789abcdef".into(), "not a GUID".into()],
        states: vec![42],
        ..Default::default()
    };
    let wrong = ["filter.operation_ids[0]", "filter.sync_guids[1]", "filter.states[0]"];
    let watch = pb::WatchSyncInfoRequest {
        filter: Some(filter.clone()),
        resume_token: "anything".into(),
        min_interval: span(-1, 0),
        heartbeat_interval: span(1, -1),
    };
    let refused = client.wait(client.sync_infos().watch_sync_info(watch));
    assert_fields(&violations(refused), &[&wrong[..], &["min_interval", "heartbeat_interval"]].concat());
    let list = pb::ListSyncInfoRequest { filter: Some(filter), page_size: -7, page_token: String::new() };
    let found = violations(client.wait(client.sync_infos().list_sync_info(list)));
    assert_fields(&found, &[&wrong[..], &["page_size"]].concat());

    let sync_guid = || "neither this nor that".to_owned();
    let get = pb::GetSessionRequest { sync_guid: sync_guid() };
    assert_fields(&violations(client.wait(client.sessions().get_session(get))), &["sync_guid"]);
    let events = pb::ListSessionEventsRequest { sync_guid: sync_guid(), page_size: -1, page_token: String::new() };
    assert_fields(&violations(client.wait(client.sessions().list_session_events(events))), &["sync_guid", "page_size"]);

    // Nothing came of it, and the server is well.
    let sessions = client.wait(client.sessions().list_sessions(pb::ListSessionsRequest::default())).expect("listed");
    assert!(sessions.into_inner().sessions.is_empty());
    let none = pb::ListOperationsRequest::default();
    let operations = client.wait(client.operations().list_operations(none)).expect("listed");
    assert!(operations.into_inner().operations.is_empty());
    server.run(["health"]).expect_code(0);
}

#[test]
fn a_request_made_twice_is_one_request() {
    let scratch = Scratch::new();
    let server = Server::start(&scratch.path("data"));
    let client = Client::connect(&server.address);
    let start = pb::StartOperationRequest {
        request_id: "01234567-89ab-4def-8123-456789abcdef".into(),
        source: address(&nobody()),
        destination: address(&nobody()),
        ..Default::default()
    };
    let answer = || client.wait(client.operations().start_operation(start.clone())).expect("accepted").into_inner();
    let ids = [answer(), answer()].map(|answer| answer.operation.expect("always set").operation_id);
    assert_eq!(ids[0], ids[1]);
    let other = pb::StartOperationRequest { allow_mass_delete: true, ..start.clone() };
    let refused = client.wait(client.operations().start_operation(other)).expect_err("another one under its id");
    assert_eq!(refused.code(), Code::AlreadyExists);
    assert_eq!(refused.get_details_error_info().expect("a refusal").reason, "REQUEST_ID_REUSED");
}

/// Until something has arrived at a destination.
fn arrives(root: &Path) {
    until("the transfer is under way", PATIENCE, || {
        let tmp = fs::read_dir(root.join(STATE).join("tmp")).into_iter().flatten().flatten().count();
        (tmp > 0 || fs::read_dir(root).is_ok_and(|entries| entries.count() > 1)).then_some(())
    });
}

#[test]
fn ctrl_c_ends_a_sync_in_good_order() {
    let scratch = Scratch::new();
    let a = scratch.directory("A");
    tree::generate(&a, &mut Random::announced("ctrl-c"), 400, 2 << 20);

    // Both roots in the process of the sync.
    let b = scratch.path("B");
    let sync = Process::start(scratch.sync_command(&a, &b, &[]));
    arrives(&b);
    sync.signal(Signal::INT);
    let ended = sync.end().expect_code(3);
    assert_eq!(ended.json()["operation"]["state"], "OPERATION_STATE_CANCELED");
    let before = tree::read(&b);
    scratch.sync(&a, &b, &[]);
    assert_equal(&a, &b);
    assert!(before.len() < tree::read(&b).len(), "it was ended in the middle");
    scratch.expect_quiet(&a, &b);

    // And both served by processes of their own, which must not be left waiting for their lease of a minute.
    let c = scratch.directory("C");
    let (source, destination) = (FileProvider::start(&a), FileProvider::start(&c));
    let addresses = [&source, &destination].map(|provider| Path::new(&provider.address).to_owned());
    let sync = Process::start(scratch.sync_command(&addresses[0], &addresses[1], &[]));
    arrives(&c);
    sync.signal(Signal::INT);
    sync.end().expect_code(3);
    let begun = Instant::now();
    scratch.sync(&addresses[0], &addresses[1], &[]);
    assert!(begun.elapsed() < Duration::from_secs(40), "the providers were told");
    assert_equal(&a, &c);
}

#[test]
fn a_second_ctrl_c_ends_it_at_once() {
    let scratch = Scratch::new();
    let (a, b) = (scratch.directory("A"), scratch.directory("B"));
    tree::generate(&a, &mut Random::announced("second ctrl-c"), 200, 2 << 20);
    let destination = FileProvider::start(&b);
    let mut sync = Process::start(scratch.sync_command(&a, Path::new(&destination.address), &[]));
    arrives(&b);
    // It does not answer any more: an orderly end takes its time.
    destination.process.signal(Signal::STOP);
    sync.signal(Signal::INT);
    let begun = Instant::now();
    until("the second signal ends it", PATIENCE, || {
        sync.signal(Signal::INT);
        (!sync.running()).then_some(())
    });
    assert!(begun.elapsed() < Duration::from_secs(4), "not at once, but after {:?}", begun.elapsed());
    sync.end().expect_code(130);
    destination.process.signal(Signal::CONT);
}

#[test]
fn services_end_in_good_order_on_a_signal() {
    let scratch = Scratch::new();
    let server = Server::start(&scratch.path("data"));
    let provider = FileProvider::start(&filled(&scratch, "A"));
    for (process, signal) in [(server.process, Signal::TERM), (provider.process, Signal::INT)] {
        process.signal(signal);
        let ended = process.end().expect_code(0);
        assert_eq!(ended.stdout.lines().count(), 1, "only the address is on stdout: {:?}", ended.stdout);
    }
}
