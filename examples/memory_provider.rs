//! A provider of items in memory, with change units, served over gRPC.
//!
//!     cargo run --example memory_provider -- 127.0.0.1:0
//!
//! The first line on stdout is its address; give it to `synclave operation start`. The items go with the process. For a store
//! of your own, implement `synclave::provider::sdk::ItemStore` as `src/providers/memory.rs` does.

use std::sync::Arc;

use serde_json::json;
use synclave::provider::sdk::{Options, ReplicaProvider};
use synclave::providers::memory::MemoryStore;
use synclave::server::{incoming, serve_provider};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let listen = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let store = Arc::new(MemoryStore::default());
    store.set("alice", json!({"mail": "alice@example.org", "phone": "1"}))?;
    store.set("bob", json!({"mail": "bob@example.org"}))?;

    // What the SDK remembers is of no use without the items: with a random identity every start is a new replica.
    let metadata = tempfile::tempdir()?;
    let identity = uuid::Uuid::new_v4().to_string();
    let options = Options { member_name: "memory".to_owned(), ..Options::default() };
    let provider = ReplicaProvider::open(store, metadata.path(), &identity, options)?;

    let listener = tokio::net::TcpListener::bind(listen).await?;
    println!("http://{}", listener.local_addr()?);
    let stop = CancellationToken::new();
    let interrupted = stop.clone();
    tokio::spawn(async move {
        // Without a signal handler the process just ends.
        if tokio::signal::ctrl_c().await.is_ok() {
            interrupted.cancel();
        }
    });
    serve_provider(incoming(listener), provider, stop).await?;
    Ok(())
}
