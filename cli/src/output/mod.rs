//! What commands print: tables that fit a terminal of 80 columns, JSON and YAML; once, or again and again.

mod progress;
mod table;
mod watch;
mod yaml;

use std::io::{self, Write};

use clap::ValueEnum;
use serde::Serialize;

pub(crate) use self::progress::{Progress, duration};
pub(crate) use self::table::{End, Fixed, Name, Table, Wide};
pub(crate) use self::watch::{Look, Watch, look, look_on};
pub(crate) use self::yaml::to_yaml;

/// The format of what is printed.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// For people; fits 80 columns
    Table,
    /// The same in full, however wide: more columns, and nothing is shortened
    Wide,
    /// For programs
    Json,
    /// For programs and people
    Yaml,
}

impl Output {
    /// Whether programs are to read it.
    pub(crate) fn is_data(self) -> bool {
        matches!(self, Self::Json | Self::Yaml)
    }

    /// A value as text; `render` makes that for people, in full or for 80 columns.
    pub(crate) fn text<T: Serialize + ?Sized>(
        self,
        value: &T,
        render: impl FnOnce(&T, Width) -> String,
    ) -> anyhow::Result<String> {
        Ok(match self {
            Self::Table => render(value, Width::Narrow),
            Self::Wide => render(value, Width::Full),
            Self::Json => format!("{}\n", serde_json::to_string_pretty(value)?),
            Self::Yaml => to_yaml(&serde_json::to_value(value)?),
        })
    }

    /// Prints a value.
    pub(crate) fn print<T: Serialize + ?Sized>(
        self,
        value: &T,
        render: impl FnOnce(&T, Width) -> String,
    ) -> anyhow::Result<()> {
        write(&self.text(value, render)?)?;
        Ok(())
    }

    /// A value among others of a stream that may have no end: a line of JSON, a document of YAML, or a line for people.
    pub(crate) fn print_one_of_many<T: Serialize + ?Sized>(
        self,
        value: &T,
        render: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<()> {
        let text = match self {
            Self::Table | Self::Wide => render(value),
            Self::Json => format!("{}\n", serde_json::to_string(value)?),
            Self::Yaml => format!("---\n{}", to_yaml(&serde_json::to_value(value)?)),
        };
        write(&text)?;
        Ok(())
    }
}

/// How wide a text for people may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Width {
    /// The columns of a terminal.
    Narrow,
    /// As wide as it takes.
    Full,
}

/// Writes to standard output. Somebody who reads no further (`| head`) is an error like any other, not a panic.
pub(crate) fn write(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}
