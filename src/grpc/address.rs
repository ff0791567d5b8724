//! Addresses of providers and coordinators: `http://HOST:PORT`.

use tonic::transport::Uri;

/// Why a text is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not `http://HOST:PORT`.
    #[error("{0:?} is not an address: write http://HOST:PORT")]
    Malformed(String),
    /// TLS is not offered.
    #[error("{0:?} asks for TLS, which is not offered yet: write http://HOST:PORT")]
    Tls(String),
}

/// Parses `http://HOST:PORT`; a single slash may follow.
pub fn parse(text: &str) -> Result<Uri, AddressError> {
    let malformed = || AddressError::Malformed(text.to_owned());
    let uri: Uri = text.parse().map_err(|_| malformed())?;
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") => return Err(AddressError::Tls(text.to_owned())),
        _ => return Err(malformed()),
    }
    let authority = uri.authority().ok_or_else(malformed)?;
    let plain = !authority.as_str().contains('@') && !authority.host().is_empty();
    let port = authority.port_u16().is_some_and(|port| port != 0);
    let bare = uri.path() == "/" && uri.query().is_none();
    if plain && port && bare { Ok(uri) } else { Err(malformed()) }
}

/// True for `file:///…`: a directory that the coordinator's own process speaks for, as `sync` does. Whether it does so only
/// the coordinator knows.
pub fn is_local(text: &str) -> bool {
    text.starts_with("file:///")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_host_and_port_only() {
        for good in ["http://127.0.0.1:50051", "http://[::1]:1", "http://branch.example:65535/"] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in ["", "127.0.0.1:1", "http://", "http://host", "http://host:0", "http://host:65536", "http://h:1/x"] {
            assert!(matches!(parse(bad), Err(AddressError::Malformed(_))), "{bad}");
        }
        for bad in ["http://u@h:1", "http://h:1?q", "ftp://h:1", "file:///tmp"] {
            assert!(matches!(parse(bad), Err(AddressError::Malformed(_))), "{bad}");
        }
        assert!(matches!(parse("https://h:1"), Err(AddressError::Tls(_))));
    }
}
