//! Signals, in two stages: the first asks for an orderly end, the second ends at once.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Exit code after a second signal: 128 + SIGINT, as a shell reports it.
pub const SECOND_SIGNAL_EXIT_CODE: i32 = 130;

/// Listens for SIGINT and SIGTERM from now on. The token is cancelled by the first of them; a second one ends the process
/// with [`SECOND_SIGNAL_EXIT_CODE`], whatever is under way: what is stored survives that as it survives a crash.
///
/// Must be called in a tokio runtime.
///
/// # Errors
///
/// When the handlers cannot be installed.
pub fn signals() -> io::Result<CancellationToken> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let first = CancellationToken::new();
    let token = first.clone();
    // Lives as long as the process: there is nobody who would wait for it.
    tokio::spawn(async move {
        either(&mut interrupt, &mut terminate).await;
        token.cancel();
        either(&mut interrupt, &mut terminate).await;
        std::process::exit(SECOND_SIGNAL_EXIT_CODE);
    });
    Ok(first)
}

async fn either(interrupt: &mut Signal, terminate: &mut Signal) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
