//! Incarnations: what tells a replica from one that was wiped and made again under the same id.
//!
//! This metadata has replica id and incarnation made together, so that the same id never has two of them here. A store that
//! keeps its id elsewhere may lose its versions and go on counting: its ticks may even be ahead of what partners know. Partners
//! remember which incarnation they met.

use uuid::Uuid;

use super::{Metadata, set_meta};
use crate::provider::Partner;

/// Longer ones are cut, so that a partner cannot fill the file.
const MAX_INCARNATION_BYTES: usize = 128;

impl Metadata {
    /// The replica's own, made when there is none.
    pub(in crate::provider::sdk) fn incarnation(&mut self) -> rusqlite::Result<String> {
        if let Some(incarnation) = self.meta("incarnation")? {
            return Ok(String::from_utf8_lossy(&incarnation).into_owned());
        }
        let incarnation = Uuid::new_v4().simple().to_string();
        let transaction = self.connection.transaction()?;
        set_meta(&transaction, "incarnation", incarnation.as_bytes())?;
        transaction.commit()?;
        Ok(incarnation)
    }

    /// True when the partner is met for the first time, or is the one that was met before; then it is remembered. A partner
    /// that does not tell its incarnation is taken at its word.
    pub(in crate::provider::sdk) fn meet(&mut self, partner: &Partner) -> rusqlite::Result<bool> {
        let told = partner.incarnation_id.as_bytes();
        let told = &told[..told.len().min(MAX_INCARNATION_BYTES)];
        if told.is_empty() {
            return Ok(true);
        }
        let hex: String = partner.replica_id.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        let key = format!("incarnation of {hex}");
        if let Some(known) = self.meta(&key)? {
            return Ok(known == told);
        }
        let transaction = self.connection.transaction()?;
        set_meta(&transaction, &key, told)?;
        transaction.commit()?;
        Ok(true)
    }
}
