//! The tokens of a session: capabilities for SessionStateService (design section 9).
//!
//! A token is HMAC-SHA256 of the store's secret over SyncGuid and role. So nobody can guess one, none has to be stored, and a
//! request that is repeated, also after a restart, is answered with the same.

use sha2::{Digest as _, Sha256};

use crate::types::{ProviderRole, SyncGuid};

/// Bytes that SHA-256 takes at a time.
const BLOCK: usize = 64;

/// Makes tokens. Cheap to clone.
#[derive(Clone)]
pub struct Tokens {
    secret: [u8; 32],
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens")
    }
}

impl Tokens {
    /// Tokens of that secret: 256 bits that nobody can guess.
    pub fn new(secret: [u8; 32]) -> Self {
        Self { secret }
    }

    /// The token of a session's end: 64 hexadecimal digits, always the same.
    pub fn token(&self, sync_guid: SyncGuid, role: ProviderRole) -> String {
        let mut message = [0; 17];
        message[..16].copy_from_slice(sync_guid.0.as_bytes());
        message[16] = role as u8;
        hmac(&self.secret, &message).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// What a token is looked up by: its SHA-256, so that a look-up tells nothing of a token by the time that it takes.
pub(super) fn fingerprint(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// HMAC-SHA256 (RFC 2104) under a key that is no longer than a block.
fn hmac(key: &[u8; 32], message: &[u8]) -> [u8; 32] {
    let padded = |pad: u8| {
        let mut block = [pad; BLOCK];
        for (byte, key) in block.iter_mut().zip(key) {
            *byte ^= key;
        }
        block
    };
    let inner = Sha256::new().chain_update(padded(0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(padded(0x5c)).chain_update(inner).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hmac_is_that_of_the_standard() {
        // RFC 4231, test cases 1 and 2; a key that is shorter than the block is one that ends in zeros.
        let key = |short: &[u8]| {
            let mut key = [0; 32];
            key[..short.len()].copy_from_slice(short);
            key
        };
        let hex = |bytes: [u8; 32]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(
            hex(hmac(&key(&[0x0b; 20]), b"Hi There")),
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"
        );
        assert_eq!(
            hex(hmac(&key(b"Jefe"), b"what do ya want for nothing?")),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn each_end_of_each_session_has_its_own() {
        let tokens = Tokens::new([7; 32]);
        let (one, other) = (SyncGuid::generate(), SyncGuid::generate());
        let all = [one, other].map(|guid| ProviderRole::BOTH.map(|role| tokens.token(guid, role)));
        let different: std::collections::HashSet<_> = all.iter().flatten().collect();
        assert_eq!(different.len(), 4);
        assert_eq!(Tokens::new([7; 32]).token(one, ProviderRole::Source), all[0][0], "the same in the next process");
        assert_ne!(Tokens::new([8; 32]).token(one, ProviderRole::Source), all[0][0]);
    }
}
