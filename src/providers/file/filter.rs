//! The file provider's custom filter: lines of a `.gitignore` at the root. What they ignore is held back.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use ignore::gitignore::GitignoreBuilder;

use crate::knowledge::ItemId;
use crate::provider::sdk::ItemFilter;

/// Name of the language on the wire.
pub const GITIGNORE: &str = "gitignore";

/// The filter of this kind, if it is known.
///
/// # Errors
/// One line: it is not, or its definition cannot be read.
pub(super) fn custom(name: &str, definition: &[u8]) -> Result<ItemFilter, String> {
    match name {
        GITIGNORE => parse(definition),
        _ => Err(format!("filters of kind {name} are not known here, only {GITIGNORE}")),
    }
}

/// Understands such a file. A directory and what is in it is held back when it is ignored as a directory; an id does not tell
/// whether it is one, so a pattern that ends with `/` holds back a file of that name, too.
///
/// # Errors
/// One line: the pattern that cannot be read, or text that is not UTF-8.
fn parse(definition: &[u8]) -> Result<ItemFilter, String> {
    let text = std::str::from_utf8(definition).map_err(|_| "its patterns are not UTF-8".to_owned())?;
    let mut builder = GitignoreBuilder::new("");
    for line in text.lines() {
        builder.add_line(None, line).map_err(|error| format!("pattern {line:?} cannot be read: {error}"))?;
    }
    let patterns = builder.build().map_err(|error| format!("its patterns cannot be read: {error}"))?;
    Ok(ItemFilter::new(move |id: &ItemId| {
        let path = Path::new(OsStr::from_bytes(id.as_bytes()));
        !patterns.matched_path_or_any_parents(path, true).is_ignore()
    }))
}

/// Whether such a file can be understood.
///
/// # Errors
/// One line: the pattern that cannot be read, or text that is not UTF-8.
pub fn check_filter(definition: &[u8]) -> Result<(), String> {
    parse(definition).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_mean_what_they_mean_in_a_gitignore() {
        let filter = parse(b"# what can be made anew\n*.o\n/target/\ncache/**\n!cache/keep\n").unwrap();
        let let_through = ["a.c", "src/main.rs", "sub/target2", "cache/keep", "cache"];
        let held_back = ["a.o", "src/b.o", "target", "target/debug/x", "cache/a", "cache/b/c"];
        for path in let_through {
            assert!(filter.lets_through(&path.into()), "{path}");
        }
        for path in held_back {
            assert!(!filter.lets_through(&path.into()), "{path}");
        }
        assert!(filter.lets_through(&ItemId::from(&b"odd \xff name"[..])));
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        assert!(parse(b"{a").is_err_and(|reason| reason.contains("\"{a\"")));
        assert!(parse(b"\xff").is_err());
    }
}
