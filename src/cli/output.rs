//! Answers on stdout: tables for people, proto3 JSON for programs.

use std::io::{self, Write as _};
use std::net::SocketAddr;

use super::exit::Failure;
use crate::grpc::json;

/// How answers look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum OutputFormat {
    /// For people: aligned columns, sizes in words.
    #[default]
    Table,
    /// proto3 JSON with default values, enum names and 64-bit numbers as strings; one message a line.
    Json,
}

/// Writes answers in the format asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Output {
    format: OutputFormat,
}

impl Output {
    pub(super) fn new(format: OutputFormat) -> Self {
        Self { format }
    }

    pub(super) fn is_json(self) -> bool {
        self.format == OutputFormat::Json
    }

    /// Writes the message as one line of JSON, or what `table` makes of it.
    pub(super) fn print<M>(self, message: &M, table: impl FnOnce(&M) -> String) -> Result<(), Failure>
    where
        M: prost::Message + prost::Name,
    {
        match self.format {
            OutputFormat::Json => line(&json::to_json(message)),
            OutputFormat::Table => text(&table(message)),
        }
    }
}

/// Writes one line and hands it on at once: a reader may act on it.
pub(super) fn line(line: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")?;
    Ok(stdout.flush()?)
}

/// Writes a text that brings its own line ends.
pub(super) fn text(text: &str) -> Result<(), Failure> {
    content(text.as_bytes())
}

/// Writes bytes as they are.
pub(super) fn content(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    Ok(stdout.flush()?)
}

/// The first line of a process that listens: exactly its address, for whoever started it.
pub(super) fn announce(address: SocketAddr) -> Result<(), Failure> {
    line(&format!("http://{address}"))
}
