//! Points in time and spans.

use std::time::Duration;

use jiff::Timestamp;

use super::{Path, Violations};

const NANOS_PER_SECOND: i128 = 1_000_000_000;

/// Encodes a point in time. Nanoseconds count forward from the second, also before 1970.
pub fn encode_timestamp(time: Timestamp) -> prost_types::Timestamp {
    let nanos = time.as_nanosecond();
    prost_types::Timestamp {
        seconds: nanos.div_euclid(NANOS_PER_SECOND) as i64,
        nanos: nanos.rem_euclid(NANOS_PER_SECOND) as i32,
    }
}

/// Decodes a point in time.
pub fn timestamp(time: prost_types::Timestamp, at: Path<'_>, violations: &mut Violations) -> Option<Timestamp> {
    let nanos = (0..NANOS_PER_SECOND as i32).contains(&time.nanos);
    let decoded = nanos.then(|| Timestamp::new(time.seconds, time.nanos).ok()).flatten();
    if decoded.is_none() {
        violations.add(at, "is no point in time that can be told");
    }
    decoded
}

/// Encodes a span. One too long for the wire (292 billion years) is cut.
pub fn encode_duration(span: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(span.as_secs()).unwrap_or(i64::MAX),
        nanos: span.subsec_nanos() as i32,
    }
}

/// Decodes a span, which must not be negative.
pub fn duration(span: prost_types::Duration, at: Path<'_>, violations: &mut Violations) -> Option<Duration> {
    let seconds = u64::try_from(span.seconds).ok();
    let nanos = u32::try_from(span.nanos).ok().filter(|nanos| i128::from(*nanos) < NANOS_PER_SECOND);
    let decoded = seconds.zip(nanos).map(|(seconds, nanos)| Duration::new(seconds, nanos));
    if decoded.is_none() {
        violations.add(at, "is no span of time of 0 or more");
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::super::decode;
    use super::*;

    #[test]
    fn times_before_1970_keep_their_nanoseconds() {
        for text in ["1969-12-31T23:59:59.25Z", "1970-01-01T00:00:00Z", "1601-01-01T00:00:00.000000001Z"] {
            let time: Timestamp = text.parse().expect("a literal");
            let wire = encode_timestamp(time);
            assert!((0..1_000_000_000).contains(&wire.nanos));
            assert_eq!(decode(|v| timestamp(wire, Path::ROOT, v)), Ok(time));
        }
    }

    #[test]
    fn impossible_times_are_refused() {
        let refused = |seconds, nanos| {
            assert!(decode(|v| timestamp(prost_types::Timestamp { seconds, nanos }, Path::ROOT, v)).is_err());
            assert!(decode(|v| duration(prost_types::Duration { seconds, nanos }, Path::ROOT, v)).is_err());
        };
        refused(0, -1);
        refused(0, 1_000_000_000);
        refused(i64::MIN, 0);
    }
}
