//! The `synclave` program: parse, log, run, exit code.

use std::process::ExitCode;

/// What one thread allocates, another often frees here: a call's answer, a write on its way to the store. The C library's
/// allocator takes a lock for that, which cost the coordinator a third of its sessions per second (docs/performance.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = match synclave::cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    synclave::telemetry::init(cli.log_options());
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(synclave::cli::run(cli)),
        Err(error) => {
            eprintln!(
                "synclave: the threads that it runs on cannot be started: {error}; free some memory or raise ulimit -u"
            );
            ExitCode::FAILURE
        }
    }
}
