//! What a JSON schema says to people, and data that fits it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

/// One parameter, or one field of a fact.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Parameter {
    #[serde(rename = "type")]
    kind: String,
    required: bool,
    default: Value,
    description: String,
}

/// The fields of a JSON schema, as people and the wire want them.
pub(super) fn parameters(schema: &Value) -> BTreeMap<String, Parameter> {
    let required: Vec<_> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let properties = schema["properties"].as_object().into_iter().flatten();
    let parameter = |(name, field): (&String, &Value)| {
        let parameter = Parameter {
            kind: type_name(schema, field, DEEPEST),
            required: required.contains(&name.as_str()),
            default: field["default"].clone(),
            description: field["description"].as_str().unwrap_or_default().to_owned(),
        };
        (name.clone(), parameter)
    };
    properties.map(parameter).collect()
}

/// So far is looked into a schema; those of plugins outside the process may go in circles.
const DEEPEST: usize = 8;

/// A field's type in a word or two; `any` where the schema leaves it open.
fn type_name(root: &Value, field: &Value, depth: usize) -> String {
    let Some(depth) = depth.checked_sub(1) else { return "any".into() };
    if let Some(target) = field["$ref"].as_str().and_then(|path| path.strip_prefix('#')) {
        return root.pointer(target).map_or("any".into(), |field| type_name(root, field, depth));
    }
    if let Some(choices) = field["enum"].as_array() {
        return choices.iter().map(Value::to_string).collect::<Vec<_>>().join(" | ");
    }
    match &field["type"] {
        Value::String(name) if name == "array" => {
            format!("array of {}", type_name(root, &field["items"], depth))
        }
        Value::String(name) => name.clone(),
        Value::Array(names) => {
            let names = names.iter().filter_map(Value::as_str).filter(|name| *name != "null");
            names.collect::<Vec<_>>().join(" | ")
        }
        _ => {
            let choices = field["anyOf"].as_array().or(field["oneOf"].as_array());
            let names = choices.into_iter().flatten().map(|choice| type_name(root, choice, depth));
            let names: Vec<_> = names.filter(|name| name != "null").collect();
            if names.is_empty() { "any".into() } else { names.join(" | ") }
        }
    }
}

/// Data of this shape: what is required, with examples where the schema has some.
pub(super) fn example(schema: &Value) -> Value {
    sample(schema, schema, DEEPEST)
}

fn sample(root: &Value, field: &Value, depth: usize) -> Value {
    let Some(depth) = depth.checked_sub(1) else { return Value::Null };
    if let Some(example) = field["examples"].as_array().and_then(|examples| examples.first()) {
        return example.clone();
    }
    if let Some(target) = field["$ref"].as_str().and_then(|path| path.strip_prefix('#')) {
        return root.pointer(target).map_or(Value::Null, |field| sample(root, field, depth));
    }
    if let Some(first) = field["enum"].as_array().and_then(|choices| choices.first()) {
        return first.clone();
    }
    let choices = field["anyOf"].as_array().or(field["oneOf"].as_array());
    if let Some(first) = choices.and_then(|choices| choices.first()) {
        return sample(root, first, depth);
    }
    if !field["const"].is_null() {
        return field["const"].clone();
    }
    let kind = field["type"].as_str().or(field["type"][0].as_str());
    match kind {
        Some("object") => {
            let required = field["required"].as_array().into_iter().flatten();
            let fields = required
                .filter_map(Value::as_str)
                .map(|name| (name.to_owned(), sample(root, &field["properties"][name], depth)));
            Value::Object(fields.collect())
        }
        Some("array") => Value::Array(vec![sample(root, &field["items"], depth)]),
        Some("integer" | "number") => 1.into(),
        Some("boolean") => true.into(),
        _ => "text".into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_schema_that_goes_in_circles_comes_to_an_end() {
        let item = json!({ "type": "array", "items": { "$ref": "#/properties/a" } });
        let schema = json!({ "properties": { "a": item, "b": { "$ref": "#/properties/b" } } });
        let parameters = parameters(&schema);
        assert!(parameters["a"].kind.starts_with("array of array of "));
        assert_eq!(parameters["b"].kind, "any");
    }
}
