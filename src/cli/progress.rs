//! Progress on stderr: a bar on a terminal, elsewhere a plain line when something changes and every few seconds.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::exit::one_line;
use super::table::{bytes, count, duration};

/// Plain lines about the same phase are at least this far apart.
const PLAIN_INTERVAL: Duration = Duration::from_secs(3);

/// How often the bar moves when there is no news, so that it looks alive.
const TICK: Duration = Duration::from_millis(120);

/// How far a sync has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// What is being done, for people.
    pub(super) phase: String,
    /// From where to where.
    pub(super) direction: String,
    /// Changes applied in this session.
    pub(super) updates_done: u64,
    /// Changes in all, where known.
    pub(super) updates_total: Option<u64>,
    /// Bytes of item data delivered in this session.
    pub(super) bytes: u64,
    /// Over the last few seconds; 0 when idle.
    pub(super) bytes_per_second: u64,
    /// Until what is known of would be done.
    pub(super) seconds_left: Option<u64>,
}

impl Progress {
    fn numbers(&self) -> String {
        let mut text = match self.updates_total {
            Some(total) => format!("{} of {}", self.updates_done, count(total, "change")),
            None => count(self.updates_done, "change"),
        };
        text.push_str(&format!(", {}", bytes(self.bytes)));
        if self.bytes_per_second > 0 {
            text.push_str(&format!(" at {}/s", bytes(self.bytes_per_second)));
        }
        if let Some(seconds) = self.seconds_left {
            text.push_str(&format!(", {} left", duration(Duration::from_secs(seconds))));
        }
        text
    }
}

/// Shows progress until dropped.
#[derive(Debug)]
pub(super) struct ProgressView(View);

#[derive(Debug)]
enum View {
    Bar(ProgressBar),
    Plain(PlainLines),
}

impl ProgressView {
    /// A bar when stderr is a terminal.
    pub(super) fn new() -> Self {
        if !io::stderr().is_terminal() {
            return Self(View::Plain(PlainLines::default()));
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        bar.enable_steady_tick(TICK);
        Self(View::Bar(bar))
    }

    /// Shows the newest state.
    pub(super) fn update(&mut self, progress: &Progress) {
        match &mut self.0 {
            View::Bar(bar) => {
                let style = if progress.updates_total.is_some() { counted() } else { uncounted() };
                bar.set_style(style);
                if let Some(total) = progress.updates_total {
                    bar.set_length(total);
                }
                bar.set_position(progress.updates_done);
                bar.set_prefix(one_line(&format!("{}  {}", progress.direction, progress.phase)));
                bar.set_message(progress.numbers());
            }
            View::Plain(lines) => {
                if let Some(line) = lines.line(progress, Instant::now()) {
                    say(&line);
                }
            }
        }
    }

    /// Says something that should stay.
    pub(super) fn notice(&self, line: &str) {
        match &self.0 {
            View::Bar(bar) => bar.suspend(|| say(line)),
            View::Plain(_) => say(line),
        }
    }
}

impl Drop for ProgressView {
    fn drop(&mut self) {
        if let View::Bar(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

fn say(line: &str) {
    // Progress is a courtesy: a stderr that is gone must not end the sync.
    let _ = writeln!(io::stderr(), "{}", one_line(line));
}

fn counted() -> ProgressStyle {
    style("{spinner} {prefix}  [{bar:24}] {msg}")
}

fn uncounted() -> ProgressStyle {
    style("{spinner} {prefix}  {msg}")
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .expect("the template is a constant that a test has parsed")
        .progress_chars("=> ")
}

/// Chooses which states are worth a line.
#[derive(Debug, Default)]
struct PlainLines {
    last: Option<(Progress, Instant)>,
}

impl PlainLines {
    fn line(&mut self, progress: &Progress, now: Instant) -> Option<String> {
        let worth = match &self.last {
            None => true,
            Some((last, at)) => {
                last.phase != progress.phase
                    || last.direction != progress.direction
                    || (last != progress && now.duration_since(*at) >= PLAIN_INTERVAL)
            }
        };
        if !worth {
            return None;
        }
        self.last = Some((progress.clone(), now));
        let mut line = format!("{}: {}", progress.direction, progress.phase);
        if progress.updates_done > 0 || progress.bytes > 0 || progress.updates_total.is_some() {
            line.push_str(&format!(", {}", progress.numbers()));
        }
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(phase: &str, updates_done: u64) -> Progress {
        Progress {
            phase: phase.to_owned(),
            direction: "a → b".to_owned(),
            updates_done,
            updates_total: Some(10),
            bytes: 2048,
            bytes_per_second: 1024,
            seconds_left: Some(70),
        }
    }

    #[test]
    fn plain_lines_come_with_a_new_phase_and_every_few_seconds() {
        let start = Instant::now();
        let mut lines = PlainLines::default();
        assert_eq!(
            lines.line(&progress("applying", 1), start).unwrap(),
            "a → b: applying, 1 of 10 changes, 2.0 KiB at 1.0 KiB/s, 1 min 10 s left"
        );
        assert_eq!(lines.line(&progress("applying", 2), start + Duration::from_secs(1)), None);
        assert!(lines.line(&progress("ending", 2), start + Duration::from_secs(1)).is_some());
        assert!(lines.line(&progress("ending", 3), start + Duration::from_secs(4)).is_some());
        assert_eq!(lines.line(&progress("ending", 3), start + Duration::from_secs(60)), None, "nothing is new");
    }

    #[test]
    fn the_templates_parse() {
        counted();
        uncounted();
    }
}
