//! A row as an item's content: a JSON object in canonical form, a member for each column that is not part of the key.
//!
//! Members are sorted, nothing is between them, and a number is as short as it can be without losing a bit, so that equal rows
//! are equal bytes. INTEGER and REAL are numbers (a REAL always with a point or an exponent), TEXT is a string, NULL is `null`,
//! and a BLOB is `{"base64":"…"}`.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rusqlite::types::{Value, ValueRef};

/// The one member of an object that stands for a BLOB.
const BLOB: &str = "base64";

/// The value of a column, as JSON. Errors: text that is not UTF-8, and infinite numbers, which JSON has no form for.
pub(super) fn to_json(value: ValueRef<'_>) -> Result<serde_json::Value, String> {
    Ok(match value {
        ValueRef::Null => serde_json::Value::Null,
        ValueRef::Integer(number) => number.into(),
        ValueRef::Real(number) => serde_json::Number::from_f64(number)
            .map(serde_json::Value::Number)
            .ok_or_else(|| format!("{number} has no form in JSON"))?,
        ValueRef::Text(bytes) => std::str::from_utf8(bytes).map_err(|_| "text that is not UTF-8".to_owned())?.into(),
        ValueRef::Blob(bytes) => serde_json::json!({ BLOB: STANDARD.encode(bytes) }),
    })
}

/// The reverse. Errors: values that a column cannot hold.
pub(super) fn from_json(value: &serde_json::Value) -> Result<Value, String> {
    match value {
        serde_json::Value::Null => Ok(Value::Null),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(integer), _) => Ok(Value::Integer(integer)),
            (None, Some(real)) if number.is_f64() => Ok(Value::Real(real)),
            _ => Err(format!("{number} is beyond what a column holds")),
        },
        serde_json::Value::String(text) => Ok(Value::Text(text.clone())),
        serde_json::Value::Object(members) => match (members.len(), members.get(BLOB)) {
            (1, Some(serde_json::Value::String(text))) => {
                STANDARD.decode(text).map(Value::Blob).map_err(|error| format!("its base64 cannot be read ({error})"))
            }
            _ => Err("an object can only be {\"base64\":\"…\"}".to_owned()),
        },
        serde_json::Value::Bool(_) => Err("a column has no true and false; use 1 and 0".to_owned()),
        serde_json::Value::Array(_) => Err("a column has no lists".to_owned()),
    }
}

/// Canonical bytes of a row.
pub(super) fn encode(columns: &BTreeMap<String, serde_json::Value>) -> Vec<u8> {
    serde_json::to_vec(columns).expect("a map with text keys has a form in JSON")
}

/// The members of an item's content. Errors: what is not a JSON object.
pub(super) fn decode(content: &[u8]) -> Result<BTreeMap<String, serde_json::Value>, String> {
    serde_json::from_slice(content).map_err(|error| format!("a row is a JSON object of its columns ({error})"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Null),
            any::<i64>().prop_map(Value::Integer),
            any::<f64>().prop_filter("finite", |number| number.is_finite()).prop_map(Value::Real),
            any::<String>().prop_map(Value::Text),
            any::<Vec<u8>>().prop_map(Value::Blob),
        ]
    }

    proptest! {
        #[test]
        fn every_value_comes_back_as_it_was(value in value()) {
            let json = serde_json::to_vec(&to_json(ValueRef::from(&value)).unwrap()).unwrap();
            prop_assert_eq!(from_json(&serde_json::from_slice(&json).unwrap()).unwrap(), value);
        }
    }

    #[test]
    fn what_a_column_cannot_hold_is_said_so() {
        let refused = |json: &str| from_json(&serde_json::from_str(json).unwrap()).unwrap_err();
        assert!(refused("true").contains("use 1 and 0"));
        assert!(refused("[1]").contains("no lists"));
        assert!(refused("18446744073709551615").contains("beyond"));
        assert!(refused(r#"{"base64":"*"}"#).contains("base64"));
        assert!(refused(r#"{"a":1}"#).contains("object"));
        assert!(to_json(ValueRef::Real(f64::INFINITY)).is_err());
        assert!(to_json(ValueRef::Text(b"\xff")).is_err());
    }
}
