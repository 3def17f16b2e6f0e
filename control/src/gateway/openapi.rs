//! The description of the interface as OpenAPI 3.1, made from the table of routes and the `.proto` files.

use std::collections::BTreeSet;

use prost_types::FieldDescriptorProto;
use prost_types::field_descriptor_proto::Type;
use serde_json::{Map, Value, json};

use super::descriptors::{INTERFACE, ParameterKind, is_repeated, map_value, parameters};
use super::routes::{Body, ROUTES, Route};

/// What is told of times and errors once, and not with each call.
const ABOUT: &str = "The control plane of Pollux. Every call is one of the gRPC interface, with the same \
                     messages in protobuf's JSON mapping: numbers of 64 bits are texts, enums are names. \
                     Creating what is there with the same spec returns it. Errors are problem details with a \
                     reason for machines and all wrong fields.";

/// Makes it.
pub(super) fn description() -> Value {
    let mut needed = BTreeSet::new();
    let mut paths = Map::new();
    for route in ROUTES {
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        if let Value::Object(path) = path {
            path.insert(route.verb.name().to_owned(), operation(route, &mut needed));
        }
    }
    let mut schemas = Map::new();
    schemas.insert("Problem".to_owned(), problem());
    // What is needed by what is needed is needed too.
    while let Some(name) = needed
        .iter()
        .find(|name| !schemas.contains_key(short(name)))
        .cloned()
    {
        let schema = schema(&name, &mut needed);
        schemas.insert(short(&name).to_owned(), schema);
    }
    let tags: Vec<Value> = INTERFACE
        .services
        .iter()
        .filter(|(name, _)| ROUTES.iter().any(|route| route.service == *name))
        .map(|(name, comment)| json!({"name": name, "description": comment}))
        .collect();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Pollux control plane",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "Nodes, pools, volumes and what is made of them",
            "description": ABOUT,
            "license": {"name": "Apache License 2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": tags,
        "security": [{"token": []}, {"certificate": []}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "Of `pollux token create`."},
                "certificate": {"type": "mutualTLS", "description": "Of `pollux cert issue`."},
            },
            "responses": {
                "Problem": {
                    "description": "It was not done.",
                    "content": {"application/problem+json": {
                        "schema": {"$ref": "#/components/schemas/Problem"},
                    }},
                },
            },
        },
    })
}

/// The last part of a full name.
fn short(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

fn operation(route: &Route, needed: &mut BTreeSet<String>) -> Value {
    let method = INTERFACE.method(route);
    let comment = method.map_or("", |method| method.comment.as_str());
    let mut list = Vec::new();
    if route.path.contains("{name}") {
        list.push(json!({
            "name": "name", "in": "path", "required": true, "description": "The name of the resource.",
            "schema": {"type": "string", "minLength": 1, "maxLength": 128},
        }));
    }
    for parameter in parameters(route) {
        let schema = match parameter.kind {
            ParameterKind::Text => json!({"type": "string"}),
            ParameterKind::Number => json!({"type": "integer", "minimum": 0}),
            ParameterKind::Flag => json!({"type": "boolean"}),
            ParameterKind::Mask => json!({"type": "array", "items": {"type": "string"}}),
        };
        let mut described = json!({
            "name": parameter.name, "in": "query", "required": false,
            "description": parameter.comment, "schema": schema,
        });
        if parameter.kind == ParameterKind::Mask
            && let Value::Object(described) = &mut described
        {
            described.insert("style".to_owned(), json!("form"));
            described.insert("explode".to_owned(), json!(false));
        }
        list.push(described);
    }
    let (input, output) = method.map_or(("", ""), |method| (method.input.as_str(), method.output.as_str()));
    let answer = reference(output, needed);
    let content = match route.is_watch {
        true => json!({
            "application/jsonl": {"schema": answer},
            "text/event-stream": {"schema": {"type": "string"}},
        }),
        false => json!({"application/json": {"schema": answer}}),
    };
    let mut operation = json!({
        "operationId": format!("{}_{}", route.service, route.rpc),
        "tags": [route.service],
        "summary": comment.split_once(". ").map_or(comment, |(first, _)| first).trim_end_matches('.'),
        "description": comment,
        "parameters": list,
        "responses": {
            "200": {"description": "It is done, or so it is.", "content": content},
            "default": {"$ref": "#/components/responses/Problem"},
        },
    });
    let body = match route.body {
        Body::None => None,
        Body::Whole => Some((false, reference(input, needed))),
        Body::Field(name) => {
            let field = INTERFACE
                .messages
                .get(input)
                .and_then(|input| input.message.field.iter().find(|field| field.name() == name));
            Some((
                true,
                reference(field.map_or("", |field| field.type_name()), needed),
            ))
        }
    };
    if let (Some((required, schema)), Value::Object(operation)) = (body, &mut operation) {
        let body = json!({"required": required, "content": {"application/json": {"schema": schema}}});
        operation.insert("requestBody".to_owned(), body);
    }
    operation
}

fn reference(name: &str, needed: &mut BTreeSet<String>) -> Value {
    needed.insert(name.to_owned());
    json!({"$ref": format!("#/components/schemas/{}", short(name))})
}

/// The schema of a message or an enum.
fn schema(name: &str, needed: &mut BTreeSet<String>) -> Value {
    if let Some(names) = INTERFACE.enums.get(name) {
        let values: Vec<&str> = names.names.value.iter().map(|value| value.name()).collect();
        let told: Vec<String> = values
            .iter()
            .zip(&names.value_comments)
            .map(|(value, comment)| format!("- `{value}`: {comment}"))
            .collect();
        let comment = format!("{}\n\n{}", names.comment, told.join("\n"));
        return json!({"type": "string", "description": comment, "enum": values});
    }
    let Some(described) = INTERFACE.messages.get(name) else {
        // Of other packages there is the field mask only, which is in queries.
        return json!({"type": "object"});
    };
    let mut properties = Map::new();
    for (field, comment) in described.message.field.iter().zip(&described.field_comments) {
        let schema = match map_value(&described.message, field) {
            Some(value) => json!({
                "type": "object", "description": comment,
                "additionalProperties": single(value, needed, ""),
            }),
            None if is_repeated(field) => json!({
                "type": "array", "description": comment, "items": single(field, needed, ""),
            }),
            None => single(field, needed, comment),
        };
        properties.insert(field.name().to_owned(), schema);
    }
    json!({
        "type": "object",
        "description": described.comment,
        "additionalProperties": false,
        "properties": properties,
    })
}

/// The schema of one value.
fn single(field: &FieldDescriptorProto, needed: &mut BTreeSet<String>, comment: &str) -> Value {
    let mut schema = match field.r#type() {
        Type::Message | Type::Enum => reference(field.type_name(), needed),
        Type::Bool => json!({"type": "boolean"}),
        Type::Uint32 | Type::Fixed32 => json!({"type": "integer", "minimum": 0, "maximum": u32::MAX}),
        Type::Int32 | Type::Sint32 | Type::Sfixed32 => json!({"type": "integer", "format": "int32"}),
        Type::Uint64 | Type::Fixed64 => json!({"type": "string", "pattern": "^[0-9]{1,20}$"}),
        Type::Int64 | Type::Sint64 | Type::Sfixed64 => {
            json!({"type": "string", "pattern": "^-?[0-9]{1,19}$"})
        }
        Type::Double | Type::Float => json!({"type": "number"}),
        Type::Bytes => json!({"type": "string", "contentEncoding": "base64"}),
        Type::String | Type::Group => json!({"type": "string"}),
    };
    if let Value::Object(schema) = &mut schema
        && !comment.is_empty()
    {
        schema.insert("description".to_owned(), json!(comment));
    }
    schema
}

fn problem() -> Value {
    let reasons: Vec<&str> = INTERFACE
        .enums
        .get(".pollux.control.v1.Reason")
        .map(|names| {
            let values = names.names.value.iter().map(|value| value.name());
            values.filter_map(|value| value.strip_prefix("REASON_")).collect()
        })
        .unwrap_or_default();
    json!({
        "type": "object",
        "description": "Why a call failed (RFC 9457).",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": {"type": "string", "const": "about:blank"},
            "title": {"type": "string", "description": "The name of the status."},
            "status": {"type": "integer", "description": "The status of HTTP."},
            "detail": {"type": "string", "description": "What went wrong and what to do, for people."},
            "code": {"type": "string", "description": "The code of gRPC, as `INVALID_ARGUMENT`."},
            "reason": {"type": "string", "description": "The reason, for machines.", "enum": reasons},
            "errors": {
                "type": "array",
                "description": "All wrong fields.",
                "items": {
                    "type": "object",
                    "required": ["field", "description"],
                    "properties": {"field": {"type": "string"}, "description": {"type": "string"}},
                },
            },
        },
    })
}
