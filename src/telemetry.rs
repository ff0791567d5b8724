//! Logs: structured events on stderr, so that stdout stays for answers; and panics through the same pipe.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

/// What to log, and how.
#[derive(Clone, Copy, Debug)]
pub struct LogOptions {
    /// Level of our own events when `RUST_LOG` is unset: 0 warnings, 1 state changes, 2 calls to providers, 3 what
    /// libraries say, 4 every frame.
    pub verbosity: u8,
    /// The look.
    pub format: LogFormat,
}

/// Installs the subscriber and the panic hook. Called once, by `main`; `RUST_LOG` overrides the verbosity.
pub fn init(options: LogOptions) {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default_directives(options.verbosity)));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match options.format {
        LogFormat::Json => subscriber.json().init(),
        LogFormat::Text => {
            let terminal = std::io::stderr().is_terminal();
            subscriber.compact().with_ansi(terminal).with_target(false).init();
        }
    }
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        tracing::error!(
            panic.location = panic.location().map(tracing::field::display),
            panic.thread = thread.name().unwrap_or("unnamed"),
            "panicked: {}",
            panic.payload_as_str().unwrap_or("without a message"),
        );
    }));
}

/// Our own crate speaks at the level asked for; the libraries under it stay a level quieter, and those that tell of every frame one
/// more, or the wire drowns the rest.
fn default_directives(verbosity: u8) -> &'static str {
    match verbosity {
        0 => "warn",
        1 => "warn,synclave=info",
        2 => "info,synclave=debug",
        3 => "debug,synclave=trace,h2=info,hyper=info,hyper_util=info,tower=info",
        _ => "debug,synclave=trace",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verbosity_is_a_valid_filter() {
        for verbosity in [0, 1, 2, 3, 4, u8::MAX] {
            EnvFilter::try_new(default_directives(verbosity)).unwrap();
        }
    }
}
