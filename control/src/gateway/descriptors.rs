//! What the `.proto` files say, with their comments.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
};

use super::routes::{Body, ROUTES, Route};

/// The package of the interface.
const PACKAGE: &str = "pollux.control.v1";

/// Numbers of fields in descriptors, by which comments are found (google/protobuf/descriptor.proto).
const FILE_MESSAGES: i32 = 4;
const FILE_ENUMS: i32 = 5;
const FILE_SERVICES: i32 = 6;
const MESSAGE_FIELDS: i32 = 2;
const SERVICE_METHODS: i32 = 2;
const ENUM_VALUES: i32 = 2;

/// A message and what it is for.
#[derive(Debug)]
pub(super) struct Described {
    pub(super) message: DescriptorProto,
    pub(super) comment: String,
    pub(super) field_comments: Vec<String>,
}

/// A call of a service and what it is for.
#[derive(Debug)]
pub(super) struct Method {
    pub(super) input: String,
    pub(super) output: String,
    pub(super) comment: String,
}

/// An enum and what it is for.
#[derive(Debug)]
pub(super) struct Names {
    pub(super) names: EnumDescriptorProto,
    pub(super) comment: String,
    pub(super) value_comments: Vec<String>,
}

/// All that the interface is made of.
#[derive(Debug, Default)]
pub(super) struct Interface {
    /// By full name, as `.pollux.control.v1.Volume`.
    pub(super) messages: BTreeMap<String, Described>,
    /// By full name.
    pub(super) enums: BTreeMap<String, Names>,
    /// By service and call.
    pub(super) methods: BTreeMap<(String, String), Method>,
    /// What services are for.
    pub(super) services: BTreeMap<String, String>,
}

/// How a parameter of a query is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ParameterKind {
    /// As it is.
    Text,
    /// A number without sign.
    Number,
    /// `true` or `false`.
    Flag,
    /// Paths of fields, separated by commas.
    Mask,
}

/// A parameter of a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Parameter {
    /// Its name.
    pub(super) name: String,
    /// The field that it is.
    pub(super) path: String,
    /// How it is read.
    pub(super) kind: ParameterKind,
    /// What it is for.
    pub(super) comment: String,
}

/// The interface, read once.
pub(super) static INTERFACE: LazyLock<Interface> = LazyLock::new(|| {
    // They were compiled in: if they could not be read, no test would pass.
    let files = FileDescriptorSet::decode(pollux_api::DESCRIPTORS).unwrap_or_default();
    let mut interface = Interface::default();
    for file in files.file.iter().filter(|file| file.package() == PACKAGE) {
        interface.add(file);
    }
    interface
});

/// Comments of a file, by the path of what they are about.
fn comments(file: &FileDescriptorProto) -> BTreeMap<&[i32], String> {
    let locations = file.source_code_info.iter().flat_map(|info| &info.location);
    locations
        .map(|location| {
            let text = location.leading_comments();
            let lines: Vec<&str> = text.lines().map(str::trim).collect();
            (location.path.as_slice(), lines.join(" ").trim().to_owned())
        })
        .collect()
}

fn index(index: usize) -> i32 {
    i32::try_from(index).unwrap_or(i32::MAX)
}

impl Interface {
    fn add(&mut self, file: &FileDescriptorProto) {
        let comments = comments(file);
        let comment = |path: &[i32]| comments.get(path).cloned().unwrap_or_default();
        for (number, message) in file.message_type.iter().enumerate() {
            let at = [FILE_MESSAGES, index(number)];
            let field_comments = (0..message.field.len())
                .map(|field| comment(&[at[0], at[1], MESSAGE_FIELDS, index(field)]))
                .collect();
            let described = Described {
                message: message.clone(),
                comment: comment(&at),
                field_comments,
            };
            self.messages
                .insert(format!(".{PACKAGE}.{}", message.name()), described);
        }
        for (number, names) in file.enum_type.iter().enumerate() {
            let at = [FILE_ENUMS, index(number)];
            let value_comments = (0..names.value.len())
                .map(|value| comment(&[at[0], at[1], ENUM_VALUES, index(value)]))
                .collect();
            let described = Names {
                names: names.clone(),
                comment: comment(&at),
                value_comments,
            };
            self.enums
                .insert(format!(".{PACKAGE}.{}", names.name()), described);
        }
        for (number, service) in file.service.iter().enumerate() {
            let at = [FILE_SERVICES, index(number)];
            self.services.insert(service.name().to_owned(), comment(&at));
            for (method_number, method) in service.method.iter().enumerate() {
                let described = Method {
                    input: method.input_type().to_owned(),
                    output: method.output_type().to_owned(),
                    comment: comment(&[at[0], at[1], SERVICE_METHODS, index(method_number)]),
                };
                self.methods
                    .insert((service.name().to_owned(), method.name().to_owned()), described);
            }
        }
    }

    /// The call that a route is.
    pub(super) fn method(&self, route: &Route) -> Option<&Method> {
        self.methods
            .get(&(route.service.to_owned(), route.rpc.to_owned()))
    }
}

/// Whether a field is a map: its entries are a message that is generated.
pub(super) fn map_value<'a>(
    message: &'a DescriptorProto,
    field: &FieldDescriptorProto,
) -> Option<&'a FieldDescriptorProto> {
    let name = field.type_name().rsplit('.').next()?;
    let entry = message.nested_type.iter().find(|nested| {
        nested.name() == name && nested.options.as_ref().is_some_and(|options| options.map_entry())
    })?;
    entry.field.iter().find(|field| field.name() == "value")
}

/// Whether there may be several of a field.
pub(super) fn is_repeated(field: &FieldDescriptorProto) -> bool {
    field.label() == Label::Repeated
}

static PARAMETERS: LazyLock<BTreeMap<&'static str, Vec<Parameter>>> = LazyLock::new(|| {
    ROUTES
        .iter()
        .map(|route| (route.rpc, read_parameters(route)))
        .collect()
});

/// The parameters that the query of a route takes: what is in its message and neither in the path nor in the
/// body.
pub(super) fn parameters(route: &Route) -> &'static [Parameter] {
    PARAMETERS.get(route.rpc).map_or(&[], Vec::as_slice)
}

fn read_parameters(route: &Route) -> Vec<Parameter> {
    let interface = &*INTERFACE;
    let input = interface
        .method(route)
        .and_then(|method| interface.messages.get(&method.input));
    let Some(input) = input else { return Vec::new() };
    if route.body == Body::Whole {
        return Vec::new();
    }
    let mut parameters = Vec::new();
    for (field, comment) in input.message.field.iter().zip(&input.field_comments) {
        let name = field.name();
        if name == route.name_field || matches!(route.body, Body::Field(body) if body == name) {
            continue;
        }
        let mut add = |name: &str, path: &str, kind: ParameterKind, comment: &str| {
            parameters.push(Parameter {
                name: name.to_owned(),
                path: path.to_owned(),
                kind,
                comment: comment.to_owned(),
            });
        };
        match (field.r#type(), field.type_name()) {
            (Type::Message, ".pollux.control.v1.PageRequest") => {
                add(
                    "page_size",
                    &format!("{name}.size"),
                    ParameterKind::Number,
                    "At most this many; 0 takes the server's choice.",
                );
                add(
                    "page_token",
                    &format!("{name}.token"),
                    ParameterKind::Text,
                    "`next_page_token` of the page before; empty for the first.",
                );
            }
            (Type::Message, ".google.protobuf.FieldMask") => {
                add(name, &format!("{name}.paths"), ParameterKind::Mask, comment);
            }
            (Type::String | Type::Enum, _) => add(name, name, ParameterKind::Text, comment),
            (Type::Uint32 | Type::Uint64, _) => add(name, name, ParameterKind::Number, comment),
            (Type::Bool, _) => add(name, name, ParameterKind::Flag, comment),
            // There is none of these; the test that all fields can be reached would find it.
            _ => {}
        }
    }
    parameters
}
