//! The `synclave` program: parse, log, run, exit code.

use std::process::ExitCode;

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
