//! Numbers in JSON.

use serde_json::Value;

/// A number for JSON: null where it is not finite.
pub fn number(x: f64) -> Value {
    serde_json::Number::from_f64(x).map_or(Value::Null, Value::Number)
}
