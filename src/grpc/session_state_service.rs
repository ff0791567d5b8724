//! SessionStateService: requests into words of the domain.

use tonic::Status;

use super::convert::{Path, provider};
use super::parse;
use crate::pb;
use crate::provider::{ProgressReport, ProviderFault};
use crate::types::Hresult;

mod server;

pub use server::SessionStateServer;

/// Bytes that a session keeps for a change applier: a bookmark, not a place for data.
const MAX_INFO_BYTES: usize = 64 * 1024;

/// Parses SetProviderWithError: the token, and what was said.
pub fn set_provider_with_error(request: pb::SetProviderWithErrorRequest) -> Result<(String, ProviderFault), Status> {
    let pb::SetProviderWithErrorRequest { token, caller_at_fault, hresult, message } = request;
    let token = self::token(token)?;
    Ok((token, ProviderFault { caller_at_fault, hresult: hresult.map(Hresult), message }))
}

/// Parses OnProgress: the token, and the report.
pub fn on_progress(request: pb::OnProgressRequest) -> Result<(String, ProgressReport), Status> {
    let pb::OnProgressRequest {
        token,
        role,
        stage,
        completed_work,
        total_work,
        updates_transferred,
        bytes_transferred,
        updates_not_transferred,
        updates_to_be_transferred,
        conflicts_generated,
        tombstones_generated,
    } = request;
    let report = pb::ProgressReport {
        role,
        stage,
        completed_work,
        total_work,
        updates_transferred,
        bytes_transferred,
        updates_not_transferred,
        updates_to_be_transferred,
        conflicts_generated,
        tombstones_generated,
    };
    parse(|violations| {
        if token.is_empty() {
            violations.add(Path::ROOT.field("token"), "is missing");
        }
        Some((token, provider::progress(report, Path::ROOT, violations)?))
    })
}

/// Parses the token of any other request. Whether there is a session behind it only the domain knows.
pub fn token(token: String) -> Result<String, Status> {
    parse(|violations| match token.is_empty() {
        true => violations.none(Path::ROOT.field("token"), "is missing"),
        false => Some(token),
    })
}

/// Parses the state that LoadInfoFromChangeApplication keeps: the token, and what is kept.
pub fn load_info(request: pb::LoadInfoFromChangeApplicationRequest) -> Result<(String, bytes::Bytes), Status> {
    let pb::LoadInfoFromChangeApplicationRequest { token, info } = request;
    parse(|violations| {
        for (name, missing) in [("token", token.is_empty()), ("info", info.is_empty())] {
            if missing {
                violations.add(Path::ROOT.field(name), "is missing");
            }
        }
        if info.len() > MAX_INFO_BYTES {
            violations.add(
                Path::ROOT.field("info"),
                format_args!("has {} bytes, at most {MAX_INFO_BYTES} are kept", info.len()),
            );
        }
        Some((token, info))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_that_is_none_is_refused() {
        let request =
            pb::OnProgressRequest { token: "t".to_owned(), role: Some(2), stage: Some(0), ..Default::default() };
        assert_eq!(on_progress(request).expect_err("role 2").code(), tonic::Code::InvalidArgument);
        let request =
            pb::OnProgressRequest { token: "t".to_owned(), role: Some(0), stage: Some(0), ..Default::default() };
        assert!(on_progress(request).is_ok());
    }
}
