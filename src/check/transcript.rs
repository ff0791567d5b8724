//! What was said, call by call: the evidence that a report shows.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

use crate::grpc::json;
use crate::types::Hresult;

/// Lines that are kept of one check; of a longer one the first go.
const MAX_LINES: usize = 60;
/// Characters of one value; content is longer, and its beginning says enough.
const MAX_VALUE: usize = 80;
/// Characters of one line.
const MAX_LINE: usize = 1_500;
/// Elements of one list.
const MAX_ELEMENTS: usize = 6;

/// The calls of one check. What they said is written out only when somebody wants to read it: most checks hold.
#[derive(Default)]
pub(super) struct Transcript(Mutex<Lines>);

#[derive(Default)]
struct Lines {
    kept: VecDeque<Line>,
    /// Those that went.
    gone: usize,
}

enum Line {
    Text(String),
    Message { head: String, value: Box<dyn Fn() -> Value + Send> },
}

impl Line {
    fn text(&self) -> String {
        let mut text = match self {
            Self::Text(text) => text.clone(),
            Self::Message { head, value } => format!("{head} {}", brief(value())),
        };
        if text.len() > MAX_LINE {
            text.truncate(text.floor_char_boundary(MAX_LINE));
            text.push('…');
        }
        text
    }
}

impl fmt::Debug for Transcript {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transcript").finish_non_exhaustive()
    }
}

impl Transcript {
    fn add(&self, line: Line) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.kept.len() == MAX_LINES {
            lines.kept.pop_front();
            lines.gone += 1;
        }
        lines.kept.push_back(line);
    }

    fn message<M: prost::Message + prost::Name + Clone + 'static>(&self, head: String, message: &M) {
        let message = message.clone();
        self.add(Line::Message { head, value: Box::new(move || json::to_readable(&message)) });
    }

    /// The kit sent a message.
    pub(super) fn sent<M: prost::Message + prost::Name + Clone + 'static>(&self, rpc: &str, message: &M) {
        self.message(format!("-> {rpc}"), message);
    }

    /// The provider answered with a message.
    pub(super) fn received<M: prost::Message + prost::Name + Clone + 'static>(&self, rpc: &str, message: &M) {
        self.message(format!("<- {rpc}"), message);
    }

    /// The provider called the kit.
    pub(super) fn called<M: prost::Message + prost::Name + Clone + 'static>(&self, rpc: &str, message: &M) {
        self.message(format!("provider -> {rpc}"), message);
    }

    /// And was answered.
    pub(super) fn answered<M: prost::Message + prost::Name + Clone + 'static>(&self, rpc: &str, message: &M) {
        self.message(format!("provider <- {rpc}"), message);
    }

    /// Anything else: a status, the end of a stream, what the kit does between calls.
    pub(super) fn note(&self, text: String) {
        self.add(Line::Text(text));
    }

    /// Begins anew.
    pub(super) fn clear(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Lines::default();
    }

    /// The lines; where some went, the first one says how many.
    pub(super) fn lines(&self) -> Vec<String> {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = (lines.gone > 0).then(|| format!("… after {} lines that are not kept", lines.gone));
        gone.into_iter().chain(lines.kept.iter().map(Line::text)).collect()
    }
}

/// A message as a person reads it: nothing that is at its default, long values and lists cut.
fn brief(mut value: Value) -> String {
    shorten(&mut value);
    value.to_string()
}

fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_u64() == Some(0),
        Value::String(text) => text.is_empty() || text == "0",
        Value::Array(list) => list.is_empty(),
        Value::Object(_) => false,
    }
}

fn shorten(value: &mut Value) {
    match value {
        Value::String(text) if text.len() > MAX_VALUE => {
            let length = text.len();
            text.truncate(text.floor_char_boundary(MAX_VALUE));
            text.push_str(&format!("… ({length} characters)"));
        }
        Value::Array(list) => {
            let more = list.len().saturating_sub(MAX_ELEMENTS);
            list.truncate(MAX_ELEMENTS);
            list.iter_mut().for_each(shorten);
            if more > 0 {
                list.push(Value::String(format!("… and {more} more")));
            }
        }
        Value::Object(fields) => {
            fields.retain(|_, value| !says_nothing(value));
            // As everybody writes them, and as the rules do.
            if let Some(value) = fields.get_mut("hresult")
                && let Some(code) = value.as_u64().and_then(|code| u32::try_from(code).ok())
            {
                *value = Value::String(format!("{:?}", Hresult(code)));
            }
            fields.values_mut().for_each(shorten);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb;

    #[test]
    fn a_message_is_brief_and_the_oldest_lines_go() {
        let transcript = Transcript::default();
        for epoch in 0..70 {
            let sync_guid = "x".repeat(200);
            transcript.sent("GetSyncBatchParameters", &pb::GetSyncBatchParametersRequest { sync_guid, epoch });
        }
        let lines = transcript.lines();
        assert_eq!(lines.len(), MAX_LINES + 1);
        assert_eq!(lines[0], "… after 10 lines that are not kept");
        assert!(lines[1].starts_with("-> GetSyncBatchParameters {"), "{}", lines[1]);
        assert!(lines[1].contains("(200 characters)") && lines[1].len() < 200, "{}", lines[1]);
        assert!(lines[60].contains("69"));
    }
}
