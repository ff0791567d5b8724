//! What an argument of a command names: an address, a member, or a directory.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use super::exit::Failure;
use crate::pb;
use crate::types::Endpoint;

/// An end of a sync, as the command line names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// A directory, served by this process.
    Directory(PathBuf),
    /// A provider that runs elsewhere.
    Provider(Endpoint),
}

impl Target {
    /// With `://` an address, with `member:` a member's name, anything else a directory.
    pub(super) fn parse(argument: &OsStr) -> Self {
        match argument.to_str() {
            Some(text) if text.contains("://") => Self::Provider(Endpoint::Address(text.to_owned())),
            Some(text) => match text.strip_prefix("member:") {
                Some(name) => Self::Provider(Endpoint::MemberName(name.to_owned())),
                None => Self::Directory(argument.into()),
            },
            None => Self::Directory(argument.into()),
        }
    }
}

/// The endpoint that an argument of a client command names; the server checks it further.
pub(super) fn provider(argument: &OsString) -> Result<pb::Endpoint, Failure> {
    match Target::parse(argument) {
        Target::Provider(endpoint) => Ok(to_pb(&endpoint)),
        Target::Directory(path) => Err(Failure::usage(format!(
            "{path:?} is a directory, and the server may be elsewhere: run `synclave provider file {}` and give the \
             address that it prints, or use `synclave sync`",
            path.display()
        ))),
    }
}

/// An endpoint as it goes over the wire.
pub(super) fn to_pb(endpoint: &Endpoint) -> pb::Endpoint {
    let target = match endpoint {
        Endpoint::Address(address) => pb::endpoint::Target::Address(address.clone()),
        Endpoint::MemberName(name) => pb::endpoint::Target::MemberName(name.clone()),
    };
    pb::Endpoint { target: Some(target) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_argument_is_an_address_a_member_or_a_directory() {
        let parse = |text: &str| Target::parse(OsStr::new(text));
        assert_eq!(parse("http://h:1"), Target::Provider(Endpoint::Address("http://h:1".into())));
        assert_eq!(parse("member:oslo"), Target::Provider(Endpoint::MemberName("oslo".into())));
        assert_eq!(parse("h:1"), Target::Directory("h:1".into()));
        assert_eq!(parse("./member:oslo"), Target::Directory("./member:oslo".into()));
    }
}
