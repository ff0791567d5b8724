//! The report: a table for people, JSON in the style of our other answers, and JUnit XML for CI.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::book::{Failure, Verdict};
use super::rule::Rule;

/// What the kit found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Where the provider is.
    pub address: String,
    /// Its name, as it says.
    pub member_name: String,
    /// Every rule of the service that was checked, in the order of its list.
    pub verdicts: Vec<(Rule, Verdict)>,
    /// How long the run took.
    pub took: Duration,
    /// Items of the kit's own that it could not delete again, by name.
    pub left_behind: Vec<String>,
}

impl Report {
    /// The rules that were broken, with the evidence.
    pub fn failures(&self) -> impl Iterator<Item = (Rule, &Failure)> {
        self.verdicts.iter().filter_map(|(rule, verdict)| match verdict {
            Verdict::Fail(failure) => Some((*rule, failure)),
            Verdict::Pass | Verdict::NotOffered(_) | Verdict::NotReached => None,
        })
    }

    /// True when no rule was broken.
    pub fn is_pass(&self) -> bool {
        self.failures().next().is_none()
    }

    fn count(&self, wanted: fn(&Verdict) -> bool) -> usize {
        self.verdicts.iter().filter(|(_, verdict)| wanted(verdict)).count()
    }

    /// One line: how many of each.
    pub fn summary(&self) -> String {
        format!(
            "{} passed, {} failed, {} not offered, {} not reached, in {:.1} s",
            self.count(|verdict| matches!(verdict, Verdict::Pass)),
            self.failures().count(),
            self.count(|verdict| matches!(verdict, Verdict::NotOffered(_))),
            self.count(|verdict| matches!(verdict, Verdict::NotReached)),
            self.took.as_secs_f64(),
        )
    }

    /// For people: a line for each rule, and the calls of each failure.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let width = self.verdicts.iter().map(|(rule, _)| rule.id().len()).max().unwrap_or(0);
        for (rule, verdict) in &self.verdicts {
            let (id, title) = (rule.id(), rule.title());
            let _ = match verdict {
                Verdict::NotOffered(reason) => {
                    writeln!(text, "{id:width$}  {:11}  {title} ({reason})", word(verdict))
                }
                _ => writeln!(text, "{id:width$}  {:11}  {title}", word(verdict)),
            };
        }
        for (rule, failure) in self.failures() {
            let _ = writeln!(text, "\nFAIL {rule}: {}", rule.title());
            let _ = writeln!(text, "  {} ({}; check {})", failure.message, rule.source(), failure.check);
            for call in &failure.calls {
                let _ = writeln!(text, "    {call}");
            }
        }
        if !self.left_behind.is_empty() {
            let _ = writeln!(text, "\nnot deleted again: {}", self.left_behind.join(", "));
        }
        let _ = writeln!(text, "\n{} {}: {}", self.address, self.member_name, self.summary());
        text
    }

    /// One object: lowerCamelCase names, verdicts as UPPER_SNAKE words, everything present.
    pub fn to_json(&self) -> Value {
        let rules: Vec<Value> = self.verdicts.iter().map(|(rule, verdict)| rule_json(*rule, verdict)).collect();
        json!({
            "address": self.address,
            "memberName": self.member_name,
            "passed": self.is_pass(),
            "rules": rules,
            "leftBehind": self.left_behind,
            "took": format!("{:.3}s", self.took.as_secs_f64()),
        })
    }

    /// JUnit XML: one test case for each rule.
    pub fn to_junit(&self) -> String {
        let skipped = self.verdicts.len() - self.count(|verdict| matches!(verdict, Verdict::Pass | Verdict::Fail(_)));
        let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
        let _ = writeln!(
            xml,
            "<testsuite name=\"synclave provider check {}\" tests=\"{}\" failures=\"{}\" skipped=\"{skipped}\" \
             errors=\"0\" time=\"{:.3}\">",
            escaped(&self.address),
            self.verdicts.len(),
            self.failures().count(),
            self.took.as_secs_f64(),
        );
        for (rule, verdict) in &self.verdicts {
            let name = escaped(&format!("{rule}: {}", rule.title()));
            let _ = write!(xml, "  <testcase classname=\"synclave.provider.check\" name=\"{name}\"");
            let _ = match verdict {
                Verdict::Pass => writeln!(xml, "/>"),
                Verdict::NotOffered(reason) => {
                    writeln!(xml, "><skipped message=\"not offered: {}\"/></testcase>", escaped(reason))
                }
                Verdict::NotReached => writeln!(xml, "><skipped message=\"not reached\"/></testcase>"),
                Verdict::Fail(failure) => writeln!(
                    xml,
                    "><failure message=\"{}\">{}</failure></testcase>",
                    escaped(&failure.message),
                    escaped(&failure.calls.join("\n"))
                ),
            };
        }
        xml.push_str("</testsuite>\n");
        xml
    }
}

fn word(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "pass",
        Verdict::Fail(_) => "FAIL",
        Verdict::NotOffered(_) => "not offered",
        Verdict::NotReached => "not reached",
    }
}

fn rule_json(rule: Rule, verdict: &Verdict) -> Value {
    let (name, message, calls, check) = match verdict {
        Verdict::Pass => ("PASS", "", &[][..], ""),
        Verdict::NotReached => ("NOT_REACHED", "", &[][..], ""),
        Verdict::NotOffered(reason) => ("NOT_OFFERED", reason.as_str(), &[][..], ""),
        Verdict::Fail(failure) => ("FAIL", failure.message.as_str(), &failure.calls[..], failure.check),
    };
    json!({
        "rule": rule.id(),
        "title": rule.title(),
        "source": rule.source(),
        "verdict": name,
        "message": message,
        "check": check,
        "calls": calls,
    })
}

/// As text or attribute of XML; characters that XML cannot hold at all become spaces.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' => escaped.push('\n'),
            character if character.is_control() || matches!(character, '\u{fffe}' | '\u{ffff}') => escaped.push(' '),
            character => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let failure = Failure {
            check: "enumeration",
            message: "item \"a\" <was> not sent".to_owned(),
            calls: vec!["-> GetChangeBatch {\"a\":\u{1}1}".to_owned()],
        };
        Report {
            address: "http://127.0.0.1:7001".to_owned(),
            member_name: "oslo".to_owned(),
            verdicts: vec![
                (Rule::Schema, Verdict::Pass),
                (Rule::Complete, Verdict::Fail(failure)),
                (Rule::FullEnumeration, Verdict::NotOffered("no FULL_ENUMERATION".to_owned())),
                (Rule::LastBatch, Verdict::NotReached),
            ],
            took: Duration::from_millis(1_500),
            left_behind: Vec::new(),
        }
    }

    #[test]
    fn a_failure_fails_the_report_and_shows_its_calls() {
        let report = report();
        assert!(!report.is_pass());
        let text = report.to_text();
        assert!(text.contains("FAIL R16") && text.contains("-> GetChangeBatch"), "{text}");
        assert!(text.contains("1 passed, 1 failed, 1 not offered, 1 not reached, in 1.5 s"), "{text}");
    }

    #[test]
    fn json_has_every_rule() {
        let json = report().to_json();
        assert_eq!(json["passed"], false);
        assert_eq!(json["rules"][1]["verdict"], "FAIL");
        assert_eq!(json["rules"][2]["message"], "no FULL_ENUMERATION");
    }

    #[test]
    fn junit_is_escaped_and_counts() {
        let xml = report().to_junit();
        assert!(xml.contains("tests=\"4\" failures=\"1\" skipped=\"2\""), "{xml}");
        assert!(xml.contains("message=\"item &quot;a&quot; &lt;was&gt; not sent\""), "{xml}");
        assert!(!xml.contains('\u{1}'));
    }
}
