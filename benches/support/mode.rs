//! How much to measure: all of it for `cargo bench`; a little with `-- --short`, and in any run that is not a benchmark's
//! (`cargo test --benches`), which shows that the benchmark works and whose figures mean nothing.

/// How much to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Under 90 seconds.
    Full,
    /// Under 10 seconds.
    Short,
}

impl Mode {
    pub fn from_arguments() -> Self {
        let has = |flag: &str| std::env::args().any(|argument| argument == flag);
        if has("--bench") && !has("--short") { Self::Full } else { Self::Short }
    }

    /// The one or the other.
    pub fn pick<T>(self, full: T, short: T) -> T {
        match self {
            Self::Full => full,
            Self::Short => short,
        }
    }

    /// Printed above every table.
    pub fn note(self) -> &'static str {
        self.pick("", " (short: shows that it runs, not how fast)")
    }
}
