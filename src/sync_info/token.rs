//! Tokens: a place in the order of changes, for one filter, in one history.

use std::fmt;

use uuid::Uuid;

/// A place. Its text is 80 hexadecimal digits, a function of the three fields alone, so that streams at the same place with
/// the same filter can share frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    /// The store's history.
    pub(super) epoch: Uuid,
    /// Of the filter, the view included.
    pub(super) filter: Uuid,
    /// All changes up to this one were sent.
    pub(super) revision: u64,
}

impl Token {
    pub(super) fn parse(text: &str) -> Option<Self> {
        if text.len() != 80 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        Some(Self {
            epoch: Uuid::try_parse(&text[..32]).ok()?,
            filter: Uuid::try_parse(&text[32..64]).ok()?,
            revision: u64::from_str_radix(&text[64..], 16).ok()?,
        })
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{:016x}", self.epoch.simple(), self.filter.simple(), self.revision)
    }
}
