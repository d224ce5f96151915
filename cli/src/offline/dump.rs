//! `ashlar store dump`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use lvol::offline::{Export, Item, Part, Value, dump};
use reactor::Disk;
use uuid::Uuid;

use super::{Exit, print, with_disk};
use crate::arguments::DumpStore;
use crate::output::{Output, to_yaml};

pub(crate) fn run(options: &DumpStore, output: Output) -> ExitCode {
    let (lvol, to) = (options.lvol, options.to.clone());
    with_disk(&options.disk, true, async move |disk| match (lvol, to) {
        (Some(lvol), Some(file)) => export(&disk, lvol, &file).await,
        _ => print_all(&disk, output).await,
    })
}

async fn print_all(disk: &Disk, output: Output) -> anyhow::Result<Exit> {
    let (mut failure, mut exit) = (None, Exit::Clean);
    dump(disk, |item| {
        if item.kind == "damaged" {
            exit = Exit::ErrorsLeft;
        }
        let text = match output {
            Output::Json => format!("{}\n", to_json(&item)),
            Output::Yaml => format!("---\n{}", to_yaml(&to_json(&item))),
            Output::Table | Output::Wide => render(&item),
        };
        failure = print(&text).err();
        failure.is_none()
    })
    .await?;
    match failure {
        Some(error) => Err(error.into()),
        None => Ok(exit),
    }
}

fn render(item: &Item) -> String {
    let mut text = format!("{} at {} ({} bytes)\n", item.kind, item.offset, item.length);
    item.fields.iter().for_each(|(name, value)| render_field(name, value, 1, &mut text));
    text
}

fn render_field(name: &str, value: &Value, depth: usize, text: &mut String) {
    let indent = "  ".repeat(depth);
    match value {
        Value::List(values) if values.iter().any(|value| matches!(value, Value::Fields(_))) => {
            text.push_str(&format!("{indent}{name}:\n"));
            values.iter().for_each(|value| text.push_str(&format!("{indent}  - {}\n", inline(value))));
        }
        _ => text.push_str(&format!("{indent}{name}: {}\n", inline(value))),
    }
}

/// A value on one line.
fn inline(value: &Value) -> String {
    match value {
        Value::Number(number) => number.to_string(),
        // Names and attributes may hold anything.
        Value::Text(text) => text.escape_debug().to_string(),
        Value::Flag(flag) => flag.to_string(),
        Value::List(values) => values.iter().map(inline).collect::<Vec<_>>().join(" "),
        Value::Fields(fields) => {
            fields.iter().map(|(name, value)| format!("{name}={}", inline(value))).collect::<Vec<_>>().join(" ")
        }
    }
}

fn to_json(item: &Item) -> serde_json::Value {
    let mut object = serde_json::Map::new();
    object.insert("kind".to_owned(), item.kind.into());
    object.insert("offset".to_owned(), item.offset.into());
    object.insert("length".to_owned(), item.length.into());
    let fields = item.fields.iter().map(|(name, value)| ((*name).to_owned(), value_to_json(value)));
    object.extend(fields);
    object.into()
}

fn value_to_json(value: &Value) -> serde_json::Value {
    match value {
        Value::Number(number) => (*number).into(),
        Value::Text(text) => text.as_str().into(),
        Value::Flag(flag) => (*flag).into(),
        Value::List(values) => values.iter().map(value_to_json).collect(),
        Value::Fields(fields) => {
            fields.iter().map(|(name, value)| ((*name).to_owned(), value_to_json(value))).collect()
        }
    }
}

/// Writes an lvol to a sparse file, as far as it can be read.
async fn export(disk: &Disk, lvol: Uuid, path: &Path) -> anyhow::Result<Exit> {
    let mut export = Export::open(disk, lvol).await?;
    let file = File::create_new(path).with_context(|| path.display().to_string())?;
    file.set_len(export.size()).with_context(|| path.display().to_string())?;
    let mut unknown = 0;
    while let Some(part) = export.next().await {
        match part {
            Part::Data(data) => write(&file, &data.bytes, data.offset).with_context(|| path.display().to_string())?,
            // The file is sparse: it has zeroes there already.
            Part::Zeroes(_) => {}
            Part::Unknown(range, why) => {
                eprintln!("unknown: bytes {}-{}: {why}", range.start, range.end - 1);
                unknown += range.end - range.start;
            }
        }
    }
    let outdated = export.outdated();
    if let Some(why) = outdated {
        eprintln!("what was exported is of an earlier moment: {why}");
    }
    file.sync_all().with_context(|| path.display().to_string())?;
    if unknown > 0 {
        eprintln!("{unknown} of {} bytes are unknown, and holes in {}", export.size(), path.display());
    }
    Ok(if unknown > 0 || outdated.is_some() { Exit::ErrorsLeft } else { Exit::Clean })
}

/// Writes what is not zero: what is reads so anyway.
fn write(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    for (piece, at) in bytes.chunks(4096).zip((offset..).step_by(4096)) {
        if piece.iter().any(|byte| *byte != 0) {
            file.write_all_at(piece, at)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_is_printed_for_people_and_for_programs() {
        let entry =
            Value::Fields(vec![("index", 7u64.into()), ("blocks", Value::List(vec!["0-3".into(), "9-9".into()]))]);
        let fields = vec![("map", 1u64.into()), ("name", "a\nb".into()), ("entries", Value::List(vec![entry]))];
        let item = Item { kind: "map", offset: 8192, length: 4096, fields };
        let expected = "\
map at 8192 (4096 bytes)
  map: 1
  name: a\\nb
  entries:
    - index=7 blocks=0-3 9-9
";
        assert_eq!(render(&item), expected);
        let json = to_json(&item).to_string();
        assert_eq!(
            json,
            r#"{"entries":[{"blocks":["0-3","9-9"],"index":7}],"kind":"map","length":4096,"map":1,"name":"a\nb","offset":8192}"#
        );
    }
}
