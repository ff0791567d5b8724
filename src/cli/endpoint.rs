//! What an argument of a command names: an address, a member, or a directory.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

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
    ///
    /// # Errors
    /// `HOST:PORT` without a scheme that names no directory: it was hardly meant to become one.
    pub(super) fn parse(argument: &OsStr) -> Result<Self, Failure> {
        let Some(text) = argument.to_str() else { return Ok(Self::Directory(argument.into())) };
        if text.contains("://") {
            return Ok(Self::Provider(Endpoint::Address(text.to_owned())));
        }
        if let Some(name) = text.strip_prefix("member:") {
            return Ok(Self::Provider(Endpoint::MemberName(name.to_owned())));
        }
        if is_host_and_port(text) && !Path::new(text).is_dir() {
            return Err(Failure::usage(format!(
                "{text} looks like an address: write http://{text}, or ./{text} for a directory"
            )));
        }
        Ok(Self::Directory(argument.into()))
    }
}

/// `oslo:7001`, `127.0.0.1:7001` or `[::1]:7001`.
fn is_host_and_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let is_host = !host.is_empty() && !host.contains('/');
    is_host && port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok()
}

/// The endpoint that an argument of a client command names; the server checks it further.
pub(super) fn provider(argument: &OsString) -> Result<pb::Endpoint, Failure> {
    match Target::parse(argument)? {
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
        let parse = |text: &str| Target::parse(OsStr::new(text)).unwrap();
        assert_eq!(parse("http://h:1"), Target::Provider(Endpoint::Address("http://h:1".into())));
        assert_eq!(parse("member:oslo"), Target::Provider(Endpoint::MemberName("oslo".into())));
        for path in ["h", "./h:1", "/srv/h:1", "h:", ":1", "h:x", "h:65536", "12:30:x"] {
            assert_eq!(parse(path), Target::Directory(path.into()));
        }
        assert_eq!(parse("./member:oslo"), Target::Directory("./member:oslo".into()));
    }

    #[test]
    fn an_address_without_its_scheme_does_not_become_a_directory() {
        for address in ["127.0.0.1:17002", "nas.local:7001", "[::1]:7001"] {
            let failure = Target::parse(OsStr::new(address)).unwrap_err();
            let line = failure.line().unwrap();
            assert!(line.contains(&format!("http://{address}")) && line.contains(&format!("./{address}")), "{line}");
            assert_eq!(failure.exit(), super::super::Exit::Usage);
        }
    }
}
