//! How a command ends.

use std::io;
use std::process::ExitCode;

/// How a command that did its work ended; the numbers are the exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// In sync, or done.
    Done = 0,
    /// Failed.
    Failed = 1,
    /// The command line is wrong; nothing was begun.
    Usage = 2,
    /// Ended but not in sync, cancelled, or stopped by Ctrl-C.
    NotInSync = 3,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command did not do what was asked; the text is one line that says what, where and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// What was asked for makes no sense, whatever the state of the world; nothing was begun.
    Usage(String),
    /// It was tried, or the world does not allow it.
    Failed(String),
    /// Stopped by Ctrl-C or SIGTERM.
    Interrupted(String),
    /// The reader of stdout went away: the quiet end of `| head`.
    OutputClosed,
}

impl Failure {
    /// A wrong command line.
    pub fn usage(line: impl Into<String>) -> Self {
        Self::Usage(line.into())
    }

    /// A failure.
    pub fn failed(line: impl Into<String>) -> Self {
        Self::Failed(line.into())
    }

    /// The line for stderr, where there is something to say.
    pub fn line(&self) -> Option<&str> {
        match self {
            Self::Usage(line) | Self::Failed(line) | Self::Interrupted(line) => Some(line),
            Self::OutputClosed => None,
        }
    }

    /// How the command ends by it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) => Exit::Usage,
            Self::Failed(_) => Exit::Failed,
            Self::Interrupted(_) => Exit::NotInSync,
            Self::OutputClosed => Exit::Done,
        }
    }
}

impl From<io::Error> for Failure {
    /// Of a write to stdout.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::OutputClosed,
            _ => Self::Failed(format!(
                "the answer cannot be written to stdout: {error}; check where it is redirected to"
            )),
        }
    }
}

/// Puts one line on stderr. Line ends inside it, which may come from a peer, become spaces.
pub(super) fn report(line: &str) {
    use std::io::Write as _;
    // A stderr that is gone leaves nobody to tell; the exit code still does.
    let _ = writeln!(io::stderr(), "synclave: {}", one_line(line));
}

/// A text with everything that could break or steer the line taken out.
pub(super) fn one_line(text: &str) -> String {
    text.split(|c: char| c.is_control()).filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_stays_one_line() {
        assert_eq!(one_line("a\nb\r\n\x1b[31mc"), "a b [31mc");
    }

    #[test]
    fn a_closed_pipe_is_a_quiet_end() {
        let failure = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!((failure.line(), failure.exit()), (None, Exit::Done));
    }
}
