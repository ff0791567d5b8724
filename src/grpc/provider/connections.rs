//! Connections to providers, which outlive a session for a moment: most often the next one with the same provider follows at
//! once, as the other direction of an operation, or as the next operation.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};

use crate::grpc::address::{self, AddressError};

/// Bytes that a peer may send on one stream before we have read them: what a slow destination makes us hold of an item.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;

/// And on all streams of the connection: more than one stream's, so that RenewSession gets through beside a stalled one.
const CONNECTION_WINDOW_BYTES: u32 = 4 * STREAM_WINDOW_BYTES;

/// A connection is kept for so long after it was last asked for, and then for as long as a session uses it. Short: nothing
/// pings it while it is idle, so the longer it is kept, the more likely its first call finds a link that broke in silence.
const KEPT_FOR: Duration = Duration::from_secs(10);

/// Connections that are kept at most. Beyond that a connection ends with the session that uses it.
const KEPT: usize = 256;

/// How a provider is dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DialOptions {
    /// A connection that is not made in so long is given up: the provider is unreachable. Default 5 s.
    pub connect_timeout: Duration,
    /// An HTTP/2 ping goes out this often while calls are under way. Default 10 s.
    pub keepalive_interval: Duration,
    /// A ping that is not answered in so long breaks the connection. Default 10 s.
    pub keepalive_timeout: Duration,
}

impl Default for DialOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(10),
        }
    }
}

/// The connections of one process, by address.
#[derive(Debug, Default)]
pub struct Connections {
    options: DialOptions,
    kept: Arc<Mutex<Kept>>,
}

#[derive(Debug, Default)]
struct Kept {
    channels: HashMap<String, (Channel, Instant)>,
    /// A task looks for those that nobody asked for, as long as there are any.
    swept: bool,
}

impl Connections {
    /// None yet.
    pub fn new(options: DialOptions) -> Self {
        Self { options, kept: Arc::default() }
    }

    /// The connection to `http://HOST:PORT`. It is made at the first call, and made again at the first call after it broke.
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the text is no such address; `https://` is refused for now.
    pub fn to(&self, address: &str) -> Result<Channel, AddressError> {
        let now = Instant::now();
        let mut kept = lock(&self.kept);
        if let Some((channel, asked)) = kept.channels.get_mut(address) {
            *asked = now;
            return Ok(channel.clone());
        }
        let channel = channel(address, self.options)?;
        if kept.channels.len() < KEPT {
            kept.channels.insert(address.to_owned(), (channel.clone(), now));
            if !std::mem::replace(&mut kept.swept, true) {
                tokio::spawn(sweep(Arc::downgrade(&self.kept)));
            }
        }
        Ok(channel)
    }
}

/// A connection of its own to `http://HOST:PORT`.
pub(super) fn channel(address: &str, options: DialOptions) -> Result<Channel, AddressError> {
    Ok(Endpoint::from(address::parse(address)?)
        .connect_timeout(options.connect_timeout)
        .http2_keep_alive_interval(options.keepalive_interval)
        .keep_alive_timeout(options.keepalive_timeout)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .tcp_nodelay(true)
        .connect_lazy())
}

/// Lets go of connections that nobody asked for in [`KEPT_FOR`]; ends with the last of them.
async fn sweep(kept: Weak<Mutex<Kept>>) {
    loop {
        tokio::time::sleep(KEPT_FOR).await;
        let Some(kept) = kept.upgrade() else { return };
        let mut kept = lock(&kept);
        kept.channels.retain(|_, (_, asked)| asked.elapsed() < KEPT_FOR);
        if kept.channels.is_empty() {
            kept.swept = false;
            return;
        }
    }
}

fn lock(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(connections: &Connections) -> Vec<String> {
        let mut all: Vec<String> = lock(&connections.kept).channels.keys().cloned().collect();
        all.sort();
        all
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_kept_for_a_moment_after_it_was_asked_for() {
        let connections = Connections::default();
        connections.to("http://127.0.0.1:1").expect("an address");
        tokio::time::sleep(KEPT_FOR / 2).await;
        connections.to("http://127.0.0.1:2").expect("an address");
        assert_eq!(addresses(&connections), ["http://127.0.0.1:1", "http://127.0.0.1:2"]);

        tokio::time::sleep(KEPT_FOR * 3 / 4).await;
        assert_eq!(addresses(&connections), ["http://127.0.0.1:2"]);
        tokio::time::sleep(KEPT_FOR).await;
        assert!(addresses(&connections).is_empty() && !lock(&connections.kept).swept);

        connections.to("http://127.0.0.1:1").expect("an address");
        tokio::time::sleep(KEPT_FOR * 2).await;
        assert!(addresses(&connections).is_empty(), "the sweep began anew");
    }

    #[tokio::test]
    async fn only_so_many_are_kept_and_wrong_addresses_are_refused() {
        let connections = Connections::default();
        for port in 1..=KEPT + 1 {
            connections.to(&format!("http://127.0.0.1:{port}")).expect("an address");
        }
        assert_eq!(addresses(&connections).len(), KEPT);
        assert!(connections.to("https://127.0.0.1:1").is_err());
        assert!(connections.to("nowhere").is_err());
    }
}
