//! From a path, a query and a body to the message of a call.

use axum::http::HeaderMap;
use percent_encoding::percent_decode_str;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::descriptors::{Parameter, ParameterKind, parameters};
use super::problem::Problem;
use super::routes::{Body, Route};

/// The header by which a stream of events goes on where it broke.
const LAST_EVENT_ID: &str = "last-event-id";

/// Text without percent-encoding.
pub(super) fn decoded(text: &str) -> Result<String, Problem> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded
        .map(|text| text.into_owned())
        .map_err(|_| Problem::field("name", "is not in UTF-8"))
}

/// The message of a call, as JSON.
pub(super) fn message(
    route: &Route,
    name: Option<&str>,
    query: Option<&str>,
    body: Option<Value>,
) -> Result<Value, Problem> {
    let mut message = match (route.body, body) {
        (Body::None, _) | (Body::Whole, None) => json!({}),
        (Body::Whole, Some(body @ Value::Object(_))) => body,
        (Body::Whole, Some(_)) => return Err(Problem::field("body", "is no JSON object")),
        (Body::Field(field), Some(body @ Value::Object(_))) => json!({ field: body }),
        (Body::Field(field), Some(_)) => return Err(Problem::field(field, "is no JSON object")),
        (Body::Field(field), None) => {
            return Err(Problem::field(field, "is missing: give it as the body, in JSON"));
        }
    };
    if let Some(name) = name {
        put_name(&mut message, route.name_field, name)?;
    }
    for pair in query
        .unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty())
    {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let key = decoded(&key.replace('+', " "))?;
        let value = decoded(&value.replace('+', " "))?;
        let known = parameters(route);
        let Some(parameter) = known.iter().find(|parameter| parameter.name == key) else {
            let names: Vec<&str> = known.iter().map(|parameter| parameter.name.as_str()).collect();
            let known = match names.is_empty() {
                true => "this call takes none".to_owned(),
                false => format!("this call takes {}", names.join(", ")),
            };
            return Err(Problem::field(
                &key,
                &format!("is no parameter of the query: {known}"),
            ));
        };
        put_parameter(&mut message, parameter, &value)?;
    }
    Ok(message)
}

/// A watch that goes on after the last event that its caller saw.
pub(super) fn resumed(route: &Route, headers: &HeaderMap, mut message: Value) -> Result<Value, Problem> {
    let last = headers.get(LAST_EVENT_ID).filter(|_| route.is_watch);
    if let (Some(last), Some(fields)) = (last, message.as_object_mut()) {
        let revision = last.to_str().ok().and_then(|text| text.parse::<u64>().ok());
        let revision = revision.ok_or_else(|| Problem::field(LAST_EVENT_ID, "is no revision"))?;
        fields.insert("after_revision".to_owned(), json!(revision.to_string()));
    }
    Ok(message)
}

/// The name in the path is the one in the message; another one there is a mistake.
fn put_name(message: &mut Value, field: &str, name: &str) -> Result<(), Problem> {
    let path: Vec<&str> = field.split('.').collect();
    let slot = slot(message, &path).ok_or_else(|| Problem::field(field, "is not inside an object"))?;
    match slot {
        Value::String(given) if given != name => {
            let description = format!("is {given:?}, and {name:?} in the path: leave it out here");
            Err(Problem::field(field, &description))
        }
        slot => {
            *slot = json!(name);
            Ok(())
        }
    }
}

/// The place of a field, made if need be; nothing if something on the way is no object.
fn slot<'a>(message: &'a mut Value, path: &[&str]) -> Option<&'a mut Value> {
    let mut at = message;
    for part in path {
        if at.is_null() {
            *at = Value::Object(Map::new());
        }
        at = at
            .as_object_mut()?
            .entry((*part).to_owned())
            .or_insert(Value::Null);
    }
    Some(at)
}

fn put_parameter(message: &mut Value, parameter: &Parameter, text: &str) -> Result<(), Problem> {
    let path: Vec<&str> = parameter.path.split('.').collect();
    let value = match parameter.kind {
        ParameterKind::Text | ParameterKind::Number => json!(text),
        ParameterKind::Mask => json!(
            text.split(',')
                .filter(|path| !path.is_empty())
                .collect::<Vec<_>>()
        ),
        ParameterKind::Flag => match text {
            "true" | "" => json!(true),
            "false" => json!(false),
            _ => return Err(Problem::field(&parameter.name, "is neither true nor false")),
        },
    };
    if parameter.kind == ParameterKind::Number && text.parse::<u64>().is_err() {
        return Err(Problem::field(
            &parameter.name,
            &format!("is {text:?}, which is no number"),
        ));
    }
    let slot = slot(message, &path).ok_or_else(|| Problem::field(&parameter.name, "has no place"))?;
    match slot.is_null() {
        true => *slot = value,
        false => return Err(Problem::field(&parameter.name, "is given twice")),
    }
    Ok(())
}

/// The message itself. What has no place in it, or is of another type, is told by its path.
pub(super) fn typed<T: DeserializeOwned>(message: Value) -> Result<T, Problem> {
    serde_path_to_error::deserialize(message).map_err(|error| {
        let path = error.path().to_string();
        let field = if path == "." { "body".to_owned() } else { path };
        // What was given is no part of the answer.
        if field.contains("secret") {
            return Problem::field(&field, "cannot be read: it is not of the type that is described");
        }
        Problem::field(&field, &format!("cannot be read: {}", error.inner()))
    })
}
