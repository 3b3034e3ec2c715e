//! Compares rows with docs/schema/*.json. It knows just what those schemas use, and fails on anything else in them.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value};

const DIRECTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/schema");

/// The names of all schemas.
pub(crate) fn names() -> BTreeSet<String> {
    let files = std::fs::read_dir(DIRECTORY).unwrap();
    files.map(|file| file.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()).collect()
}

/// The fields of the rows of a list, in order.
pub(crate) fn fields(name: &str) -> Vec<String> {
    let required = read(name)["items"]["required"].as_array().unwrap().clone();
    required.iter().map(|field| field.as_str().unwrap().to_owned()).collect()
}

/// Panics at the first field that is not as the schema `name` says, lacks or is not described.
pub(crate) fn check(name: &str, rows: &[Value]) {
    let schema = read(name);
    assert_eq!(schema["type"], "array");
    let items = schema["items"].as_object().unwrap();
    for row in rows {
        object(items, row).unwrap_or_else(|why| panic!("{name}: {why} in {row}"));
    }
}

fn read(name: &str) -> Value {
    let text = std::fs::read_to_string(Path::new(DIRECTORY).join(name).with_extension("json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn object(schema: &Map<String, Value>, row: &Value) -> Result<(), String> {
    assert_eq!(schema["type"], "object");
    let row = row.as_object().ok_or("not an object")?;
    let described = schema["properties"].as_object().unwrap();
    let required: BTreeSet<_> = schema["required"].as_array().unwrap().iter().map(|field| field.as_str().unwrap()).collect();
    assert_eq!(required, described.keys().map(String::as_str).collect(), "all fields are required");
    if let Some(field) = required.iter().find(|field| !row.contains_key(**field)) {
        return Err(format!("no `{field}`"));
    }
    row.iter().try_for_each(|(field, found)| {
        let schema = described.get(field).ok_or_else(|| format!("`{field}` is not described"))?;
        value(schema.as_object().unwrap(), found).map_err(|why| format!("`{field}` {why}"))
    })
}

fn value(schema: &Map<String, Value>, found: &Value) -> Result<(), String> {
    schema.iter().try_for_each(|(keyword, wanted)| {
        let fits = match (keyword.as_str(), found) {
            ("description", _) => true,
            ("type", _) => types(wanted).any(|name| is_of_type(name, found)),
            (_, Value::Null) => true,
            ("enum", _) => wanted.as_array().unwrap().contains(found),
            ("minimum", Value::Number(number)) => number.as_u64() >= wanted.as_u64(),
            ("maximum", Value::Number(number)) => number.as_u64() <= wanted.as_u64(),
            ("pattern", Value::String(text)) => fits_pattern(wanted.as_str().unwrap(), text),
            ("format", Value::String(text)) => wanted == "date-time" && is_time(text),
            ("items", Value::Array(elements)) => {
                elements.iter().try_for_each(|element| value(wanted.as_object().unwrap(), element))?;
                true
            }
            // What is no array is not concerned.
            ("items", _) => true,
            _ => panic!("the schema says `{keyword}`, which this test does not know"),
        };
        if fits { Ok(()) } else { Err(format!("is {found}: not as `{keyword}` {wanted} says")) }
    })
}

fn types(wanted: &Value) -> impl Iterator<Item = &str> {
    let several = wanted.as_array().into_iter().flatten();
    several.chain(wanted.is_string().then_some(wanted)).map(|name| name.as_str().unwrap())
}

fn is_of_type(name: &str, found: &Value) -> bool {
    match name {
        "null" => found.is_null(),
        "boolean" => found.is_boolean(),
        "integer" => found.is_u64(),
        "string" => found.is_string(),
        "array" => found.is_array(),
        _ => panic!("the schema has the type `{name}`, which this test does not know"),
    }
}

fn fits_pattern(pattern: &str, text: &str) -> bool {
    let is_hex = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    match pattern {
        "^0x[0-9a-f]{16}$" => text.len() == 18 && text.strip_prefix("0x").is_some_and(is_hex),
        "^([0-9a-f]{2})*$" => text.len().is_multiple_of(2) && is_hex(text),
        "^r[w-][x-][u-]$" => {
            text.len() == 4
                && text.bytes().zip(b"rwxu").all(|(byte, letter)| byte == *letter || byte == b'-')
                && text.starts_with('r')
        }
        _ => panic!("the schema has the pattern `{pattern}`, which this test does not know"),
    }
}

/// `2026-11-21T02:04:08.123Z`: digits where the pattern has a zero, itself elsewhere.
fn is_time(text: &str) -> bool {
    let pattern = "0000-00-00T00:00:00.000Z";
    text.len() == pattern.len()
        && text.bytes().zip(pattern.bytes()).all(|(byte, like)| byte == like || like == b'0' && byte.is_ascii_digit())
}
