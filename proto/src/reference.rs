//! `docs/api.md`: the reference of the API, from the contract and its comments.
//!
//! The test says when the page is not the contract's any more; `cargo xtask api` writes it anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
    ServiceDescriptorProto,
};

use crate::FILE_DESCRIPTOR_SET;

/// What the page begins with.
const INTRODUCTION: &str = "# The API

This page is made of `proto/ashlar/v1/*.proto` by `cargo xtask api`: change the comments there. What holds for all calls (deadlines, pages, watches,
request ids, how many there may be) is in [api-calls.md](api-calls.md).

Package `ashlar.v1`, gRPC over HTTP/2. Server reflection is on: `grpcurl -plaintext 127.0.0.1:9500 list` works without any file. `grpc.health.v1`
says of each service whether it answers ([health.md](health.md)).
";

/// The enumeration whose values are reasons of errors.
const REASONS: &str = "ErrorReason";

/// Makes the page.
fn render() -> String {
    let files = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).expect("the build made it").file;
    let mut files: Vec<_> = files.iter().filter(|file| file.package() == "ashlar.v1").map(Commented::new).collect();
    files.sort_by_key(|file| file.file.name().to_owned());
    let mut page = Page { text: INTRODUCTION.to_owned(), files };
    page.contents();
    page.services();
    page.messages();
    page.enumerations();
    page.reasons();
    page.text
}

/// A file and the comments in it, by the paths of what they are about.
struct Commented<'a> {
    file: &'a FileDescriptorProto,
    comments: BTreeMap<Vec<i32>, &'a str>,
}

/// The numbers of the fields of `FileDescriptorProto` and what is in it, of which paths consist.
mod tag {
    pub(super) const MESSAGES: i32 = 4;
    pub(super) const ENUMS: i32 = 5;
    pub(super) const SERVICES: i32 = 6;
    pub(super) const FIELDS: i32 = 2;
    pub(super) const VALUES: i32 = 2;
    pub(super) const METHODS: i32 = 2;
}

impl<'a> Commented<'a> {
    fn new(file: &'a FileDescriptorProto) -> Self {
        let locations = file.source_code_info.iter().flat_map(|info| &info.location);
        let commented = locations.filter_map(|place| Some((place.path.clone(), place.leading_comments.as_deref()?)));
        Self { file, comments: commented.collect() }
    }

    /// As paragraphs, each one line.
    fn comment(&self, path: &[i32]) -> Vec<String> {
        let text = self.comments.get(path).copied().unwrap_or_default();
        let paragraphs = text.split("\n\n").map(|paragraph| {
            let lines: Vec<_> = paragraph.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
            lines.join(" ")
        });
        paragraphs.filter(|paragraph| !paragraph.is_empty()).collect()
    }

    fn line(&self, path: &[i32]) -> String {
        self.comment(path).join(" ").replace('|', "\\|")
    }
}

struct Page<'a> {
    text: String,
    files: Vec<Commented<'a>>,
}

impl Page<'_> {
    fn contents(&mut self) {
        let mut text = "\n| service | what it is |\n|---|---|\n".to_owned();
        for (file, number, service) in self.all_services() {
            let about = file.comment(&[tag::SERVICES, number]);
            let first = about.first().map_or("", String::as_str);
            let _ = writeln!(text, "| [{0}](#{1}) | {first} |", service.name(), service.name().to_lowercase());
        }
        text += "\n[Messages](#messages), [enumerations](#enumerations), [reasons of errors](#reasons-of-errors).\n";
        self.text += &text;
    }

    fn services(&mut self) {
        let mut text = String::new();
        for (file, number, service) in self.all_services() {
            let _ = writeln!(text, "\n## {}\n", service.name());
            text += &paragraphs(&file.comment(&[tag::SERVICES, number]));
            text += "\n| call | takes | gives | what it does |\n|---|---|---|---|\n";
            for (at, method) in (0..).zip(&service.method) {
                let stream = |is: bool| if is { "stream of " } else { "" };
                let _ = writeln!(
                    text,
                    "| `{}` | {}{} | {}{} | {} |",
                    method.name(),
                    stream(method.client_streaming()),
                    link(method.input_type()),
                    stream(method.server_streaming()),
                    link(method.output_type()),
                    file.line(&[tag::SERVICES, number, tag::METHODS, at])
                );
            }
        }
        self.text += &text;
    }

    fn messages(&mut self) {
        let mut text = "\n## Messages\n".to_owned();
        for (name, (file, number, message)) in self.by_name(|file| &file.message_type, |message| message.name()) {
            let path = [tag::MESSAGES, number];
            let _ = writeln!(text, "\n### {name}\n");
            let about = file.comment(&path);
            text += &paragraphs(&about);
            if message.field.is_empty() {
                text += if about.is_empty() { "Empty.\n" } else { "\nEmpty.\n" };
                continue;
            }
            text += if about.is_empty() { "" } else { "\n" };
            text += "| field | type | what it is |\n|---|---|---|\n";
            for (at, field) in (0..).zip(&message.field) {
                let about = file.line(&[tag::MESSAGES, number, tag::FIELDS, at]);
                let _ =
                    writeln!(text, "| `{}` = {} | {} | {about} |", field.name(), field.number(), kind(message, field));
            }
        }
        self.text += &text;
    }

    fn enumerations(&mut self) {
        let mut text = "\n## Enumerations\n".to_owned();
        for (name, (file, number, enumeration)) in self.by_name(|file| &file.enum_type, |found| found.name()) {
            if name == REASONS {
                continue;
            }
            let _ = writeln!(text, "\n### {name}\n");
            text += &paragraphs(&file.comment(&[tag::ENUMS, number]));
            text += "\n| value | what it says |\n|---|---|\n";
            for (at, value) in (0..).zip(&enumeration.value) {
                let about = file.line(&[tag::ENUMS, number, tag::VALUES, at]);
                let _ = writeln!(text, "| `{}` = {} | {about} |", value.name(), value.number());
            }
        }
        self.text += &text;
    }

    fn reasons(&mut self) {
        let mut text = "\n## Reasons of errors\n\n".to_owned();
        for (name, (file, number, enumeration)) in self.by_name(|file| &file.enum_type, |found| found.name()) {
            if name != REASONS {
                continue;
            }
            text += &paragraphs(&file.comment(&[tag::ENUMS, number]));
            text += "\n| reason | code | meaning |\n|---|---|---|\n";
            for (at, value) in (0..).zip(&enumeration.value).filter(|(_, value)| value.number() > 0) {
                let about = file.line(&[tag::ENUMS, number, tag::VALUES, at]);
                let (codes, meaning) = about.split_once(": ").expect("a reason begins with its codes");
                let _ = writeln!(text, "| `{}` | {codes} | {meaning} |", value.name());
            }
        }
        self.text += &text;
    }

    fn all_services(&self) -> impl Iterator<Item = (&Commented<'_>, i32, &ServiceDescriptorProto)> {
        self.files.iter().flat_map(|file| (0..).zip(&file.file.service).map(move |(at, service)| (file, at, service)))
    }

    fn by_name<T>(
        &self,
        items: impl Fn(&FileDescriptorProto) -> &Vec<T>,
        name: impl Fn(&T) -> &str,
    ) -> BTreeMap<String, (&Commented<'_>, i32, &T)> {
        let all =
            self.files.iter().flat_map(|file| (0..).zip(items(file.file)).map(move |(at, item)| (file, at, item)));
        all.map(|(file, at, item)| (name(item).to_owned(), (file, at, item))).collect()
    }
}

fn paragraphs(texts: &[String]) -> String {
    texts.iter().map(|text| format!("{text}\n")).collect::<Vec<_>>().join("\n")
}

/// A type of ours, as a link to where it is told.
fn link(name: &str) -> String {
    let name = name.rsplit('.').next().unwrap_or(name);
    format!("[{name}](#{})", name.to_lowercase())
}

/// The pair that a field is a map of, if it is one.
fn map_entry<'a>(message: &'a DescriptorProto, field: &FieldDescriptorProto) -> Option<&'a DescriptorProto> {
    let name = field.type_name().rsplit('.').next();
    let is_entry = |nested: &&DescriptorProto| nested.options.as_ref().is_some_and(|options| options.map_entry());
    message.nested_type.iter().filter(is_entry).find(|nested| Some(nested.name()) == name)
}

fn kind(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    if let Some(entry) = map_entry(message, field)
        && let [key, value] = entry.field.as_slice()
    {
        return format!("map of {} to {}", kind(entry, key), kind(entry, value));
    }
    let kind = match field.r#type() {
        Type::Message | Type::Enum => link(field.type_name()),
        kind => format!("{kind:?}").to_lowercase(),
    };
    let one_of = field.oneof_index.and_then(|index| message.oneof_decl.get(usize::try_from(index).ok()?));
    match (field.label(), one_of) {
        (Label::Repeated, _) => format!("list of {kind}"),
        _ if field.proto3_optional() => format!("{kind}, optional"),
        (_, Some(one_of)) => format!("{kind}, one of `{}`", one_of.name()),
        _ => kind,
    }
}

/// What lacks a comment, without which the reference would say nothing about it.
fn undocumented() -> BTreeSet<String> {
    let files = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).expect("the build made it").file;
    let mut missing = BTreeSet::new();
    for file in files.iter().filter(|file| file.package() == "ashlar.v1").map(Commented::new) {
        let mut want = |path: &[i32], name: String| {
            if file.line(path).is_empty() {
                missing.insert(name);
            }
        };
        for (at, enumeration) in (0..).zip(&file.file.enum_type) {
            want(&[tag::ENUMS, at], enumeration.name().to_owned());
        }
        for (at, service) in (0..).zip(&file.file.service) {
            want(&[tag::SERVICES, at], service.name().to_owned());
            for (method_at, method) in (0..).zip(&service.method) {
                want(&[tag::SERVICES, at, tag::METHODS, method_at], format!("{}.{}", service.name(), method.name()));
            }
        }
        for (at, message) in (0..).zip(&file.file.message_type) {
            for (field_at, field) in (0..).zip(&message.field) {
                want(&[tag::MESSAGES, at, tag::FIELDS, field_at], format!("{}.{}", message.name(), field.name()));
            }
        }
        for (at, enumeration) in (0..).zip(&file.file.enum_type) {
            missing.extend(undocumented_values(&file, at, enumeration));
        }
    }
    missing
}

/// Values but the first one, which stands for none, and those that say what they are.
fn undocumented_values(file: &Commented<'_>, at: i32, enumeration: &EnumDescriptorProto) -> Vec<String> {
    let says_enough = ["EventSubject"];
    let values = (0..).zip(&enumeration.value).filter(|(_, value)| value.number() > 0);
    let bare = values.filter(|(value_at, _)| file.line(&[tag::ENUMS, at, tag::VALUES, *value_at]).is_empty());
    bare.filter(|_| !says_enough.contains(&enumeration.name())).map(|(_, value)| value.name().to_owned()).collect()
}

#[test]
fn the_reference_is_that_of_the_contract() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/api.md");
    let page = render();
    if std::env::var_os("ASHLAR_WRITE_REFERENCE").is_some() {
        std::fs::write(&path, page).expect("the page can be written");
        return;
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == page, "docs/api.md is not what the contract says: write it anew with `cargo xtask api`");
}

#[test]
fn everything_in_the_contract_has_a_comment() {
    assert_eq!(undocumented(), BTreeSet::new());
}

#[test]
fn the_reference_tells_of_calls_fields_and_reasons() {
    let page = render();
    for text in [
        "| `CancelDelete` | [CancelDeleteLvolRequest](#canceldeletelvolrequest) | [Lvol](#lvol) |",
        "| `Export` | [ExportLvolRequest](#exportlvolrequest) | stream of [ExportLvolResponse](#exportlvolresponse) |",
        "| `page_token` = 2 | string | Where the page before ended; empty for the first one. |",
        "| `OTHER_UUID` | ABORTED | the object is not the one expected; nothing was changed.",
        "| `lvol` = 1 | [Lvol](#lvol), one of `part` |",
        "| `paused` = 2 | bool, optional |",
    ] {
        assert!(page.contains(text), "{text}");
    }
}
