//! The program as a process: help, exit codes, one line for what is wrong, and what goes to which stream.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpListener;
use std::process::{Command, Output, Stdio};

fn command<S: AsRef<OsStr>>(arguments: &[S]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_synclave"));
    command.args(arguments).env_remove("SYNCLAVE_SERVER").env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

fn synclave<S: AsRef<OsStr>>(arguments: &[S]) -> Output {
    command(arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The one line on stderr of a command that ended with `code` and printed nothing else.
fn refusal<S: AsRef<OsStr>>(arguments: &[S], code: i32) -> String {
    let output = synclave(arguments);
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert_eq!(stdout(&output), "");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    stderr
}

/// An address where nothing listens: the port was free a moment ago.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[test]
fn every_command_explains_itself() {
    let commands: &[&[&str]] = &[
        &[],
        &["sync"],
        &["serve"],
        &["provider"],
        &["provider", "file"],
        &["session"],
        &["session", "begin"],
        &["session", "end"],
        &["session", "cancel"],
        &["session", "get"],
        &["session", "events"],
        &["session", "list"],
        &["operation"],
        &["operation", "start"],
        &["operation", "get"],
        &["operation", "cancel"],
        &["operation", "list"],
        &["watch"],
        &["health"],
    ];
    for command in commands {
        let arguments: Vec<&str> = command.iter().copied().chain(["--help"]).collect();
        let output = synclave(&arguments);
        assert_eq!(output.status.code(), Some(0), "{command:?}");
        assert!(stdout(&output).contains("Usage: synclave"), "{command:?}");
        assert!(output.stderr.is_empty(), "{command:?}");
    }
}

#[test]
fn the_help_teaches_with_examples_and_exit_codes() {
    let help = stdout(&synclave(&["--help"]));
    for word in ["synclave sync ~/photos", "synclave serve", "130"] {
        assert!(help.contains(word), "{word} is not in:\n{help}");
    }
    for command in ["sync", "serve", "session", "operation", "watch", "health"] {
        let help = stdout(&synclave(&[command, "--help"]));
        assert!(help.contains("Examples:"), "{command}:\n{help}");
    }
}

#[test]
fn a_wrong_command_line_is_one_line_and_exit_code_2() {
    for arguments in [
        &["sync", "only-one"][..],
        &["sink", "a", "b"],
        &["sync", "a", "b", "--conflict", "mine"],
        &["session", "list", "--state", "busy"],
        &["watch", "--min-interval", "soon"],
        &["serve", "--listen", "nowhere"],
        &["session", "begin", "http://a:1", "http://b:1", "--lease", "30s"],
    ] {
        let line = refusal(arguments, 2);
        assert!(line.starts_with("synclave: "), "{line}");
    }
    let output = synclave::<&str>(&[]);
    assert_eq!(output.status.code(), Some(2), "without a command the help is the answer, and an error");
}

#[test]
fn a_directory_is_no_address_of_a_provider() {
    for command in [["session", "begin"], ["operation", "start"]] {
        let line = refusal(&[command[0], command[1], "/tmp", "http://127.0.0.1:1"], 2);
        assert!(line.contains("synclave provider file /tmp"), "{line}");
        let line = refusal(&[command[0], command[1], "127.0.0.1:1", "http://127.0.0.1:1"], 2);
        assert!(line.contains("write http://127.0.0.1:1,"), "{line}");
    }
}

#[test]
fn a_server_that_is_not_there_is_one_line_and_exit_code_1() {
    let server = nobody();
    let guid = "0192f0c1-7c1e-7b7e-9d3a-5f3c1f0e8a11";
    for arguments in [
        &["health"][..],
        &["watch"],
        &["session", "list"],
        &["session", "get", guid],
        &["operation", "list"],
        &["operation", "start", "http://127.0.0.1:1", "http://127.0.0.1:2", "--wait"],
    ] {
        let arguments: Vec<&str> = arguments.iter().copied().chain(["--server", &server]).collect();
        let line = refusal(&arguments, 1);
        assert!(line.contains(&server) && line.contains("refused") && line.contains("synclave serve"), "{line}");
    }
}

#[test]
fn the_server_comes_from_the_environment_too() {
    let server = nobody();
    let output = command(&["health"]).env("SYNCLAVE_SERVER", &server).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains(&server));
}

#[test]
fn an_address_that_is_none_is_a_usage_error() {
    for server in ["127.0.0.1:50051", "https://127.0.0.1:50051", "http://"] {
        refusal(&["health", "--server", server], 2);
    }
}

#[test]
fn roots_are_checked_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).into_os_string().into_string().unwrap();
    std::fs::create_dir_all(path("a/inner")).unwrap();
    std::fs::write(path("file"), "").unwrap();
    let data = path("data");
    let cases = [
        (path("gone"), path("b"), "no such directory"),
        (path("a"), path("gone/b"), "would be in"),
        (path("file"), path("b"), "not a directory"),
        (path("a"), path("a/../a"), "same directory"),
        (path("a"), path("a/inner"), "inside"),
        (path("a/inner"), path("a"), "inside"),
        (path("a"), path("a/new"), "inside"),
        ("http://127.0.0.1:1".to_owned(), "http://127.0.0.1:1".to_owned(), "twice"),
        (path("a"), "127.0.0.1:1".to_owned(), "looks like an address"),
    ];
    for (a, b, word) in cases {
        let line = refusal(&["sync", &a, &b, "--data-dir", &data], 2);
        assert!(line.contains(word), "{line}");
    }
    let mut left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["a", "file"]);
    assert_eq!(std::fs::read_dir(path("a")).unwrap().count(), 1);
    refusal(&["provider", "file", &path("gone")], 2);
}

#[test]
fn others_are_let_in_only_with_consent() {
    let line = refusal(&["serve", "--listen", "0.0.0.0:0"], 2);
    assert!(line.contains("--insecure"), "{line}");
    let line = refusal(&["provider", "file", "/tmp", "--listen", "0.0.0.0:0"], 2);
    assert!(line.contains("--insecure"), "{line}");
}

#[test]
fn a_port_that_is_taken_is_said() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let line = refusal(
        &[OsStr::new("serve"), "--listen".as_ref(), address.as_ref(), "--data-dir".as_ref(), dir.path().as_ref()],
        1,
    );
    assert!(line.contains(&address) && line.contains("--listen"), "{line}");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child = command(&["--help"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert!(child.wait().unwrap().success(), "{stderr}");
    assert_eq!(stderr, "");
}

/// Each has a place of its own for its state, though nobody was told one.
#[test]
fn two_are_synced_while_a_coordinator_serves() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).into_os_string();
    std::fs::create_dir(path("a")).unwrap();
    std::fs::write(dir.path().join("a/letter"), "dear").unwrap();
    let mut serve = command(&["serve", "--listen", "127.0.0.1:0"]);
    let mut serving =
        serve.env("XDG_STATE_HOME", path("state")).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut address = String::new();
    BufReader::new(serving.stdout.take().unwrap()).read_line(&mut address).unwrap();
    let synced = command(&["sync".into(), path("a"), path("b")]).env("XDG_STATE_HOME", path("state")).output();
    serving.kill().unwrap();
    serving.wait().unwrap();
    let synced = synced.unwrap();
    assert!(address.starts_with("http://"), "{address}");
    assert!(synced.status.success(), "{}", String::from_utf8_lossy(&synced.stderr));
    assert_eq!(std::fs::read(dir.path().join("b/letter")).unwrap(), b"dear");
}
