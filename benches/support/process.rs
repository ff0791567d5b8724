//! Processes: a coordinator, or this benchmark once more in another role; and how much memory one has needed.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// The first argument of a benchmark that is to play a role beside itself.
const ROLE: &str = "--role";

/// A process that takes commands, a line each, and answers with a line. It is killed when it is dropped.
pub struct Process {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    fn spawn(command: &mut Command) -> Self {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().expect("a process");
        let stdin = child.stdin.take().expect("piped");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, stdin, stdout }
    }

    /// This program in another role; see [`role`].
    pub fn of_role(name: &str, arguments: &[&str]) -> Self {
        let program = std::env::current_exe().expect("its own path");
        Self::spawn(Command::new(program).args([ROLE, name]).args(arguments))
    }

    /// `synclave serve` on a free port, and its address.
    pub fn coordinator(data_dir: &Path) -> (Self, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_synclave"));
        command.args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(data_dir);
        // Its log is not read by anyone here.
        command.env("RUST_LOG", "warn");
        let mut process = Self::spawn(&mut command);
        let address = process.line();
        (process, address)
    }

    /// The next line that it prints.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        let read = self.stdout.read_line(&mut line).expect("a line");
        assert!(read > 0, "the process has ended");
        line.trim().to_owned()
    }

    /// Sends a command and waits for the answer.
    pub fn ask(&mut self, command: &str) -> String {
        writeln!(self.stdin, "{command}").expect("it listens");
        self.line()
    }

    /// The most physical memory that it has held, in bytes (VmHWM).
    pub fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("Linux");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a process that runs");
        let kib = line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number");
        kib << 10
    }
}

/// The role that this process was started in, and its arguments; `None` in the benchmark itself.
pub fn role() -> Option<(String, Vec<String>)> {
    let mut arguments = std::env::args().skip(1);
    (arguments.next()? == ROLE).then(|| (arguments.next().expect("a role"), arguments.collect()))
}
