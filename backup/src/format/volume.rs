//! `volume.cfg`: what the store knows of a volume.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::go_json::{self, Doubled};
use super::layout::is_name;
use crate::block::Compression;
use crate::error::{Result, corrupt};

/// Largest file that is read.
pub const LARGEST: u64 = 1 << 20;

/// Most keys that we do not know.
const MOST_UNKNOWN: usize = 256;

/// The content of a `volume.cfg`.
#[derive(Clone, Debug, Default)]
pub struct VolumeConfig {
    /// The volume's name.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its labels; None is null.
    pub labels: Option<BTreeMap<String, String>>,
    /// When it was first backed up.
    pub created: String,
    /// The newest backup, empty if there is none.
    pub last_backup: String,
    /// When the snapshot of the newest backup was taken.
    pub last_backup_at: String,
    /// How many blocks the store has of it.
    pub block_count: u64,
    backing_image_name: Option<Doubled>,
    backing_image_checksum: Option<Doubled>,
    compression: Option<Doubled>,
    storage_class: Option<Doubled>,
    data_engine: Option<Doubled>,
    /// Keys that we do not know, as they are.
    unknown: Vec<(String, Box<RawValue>)>,
}

impl VolumeConfig {
    /// The file of a volume that has no backup yet.
    pub fn new(name: &str, size: u64, compression: Compression, created: String) -> Self {
        Self {
            name: name.to_owned(),
            size,
            created,
            backing_image_name: Some(Doubled::new("")),
            backing_image_checksum: Some(Doubled::new("")),
            compression: Some(Doubled::new(compression.name())),
            storage_class: Some(Doubled::new("")),
            data_engine: Some(Doubled::new("v2")),
            ..Self::default()
        }
    }

    /// How the volume's blocks are compressed.
    ///
    /// # Errors
    /// When it is a method that we do not know.
    pub fn compression(&self) -> Result<Compression> {
        match self.compression.as_ref().map_or("", Doubled::value) {
            "" => Ok(Compression::Gzip),
            name => Compression::parse(name).ok_or_else(|| corrupt(format!("volume.cfg: compression {name:?}"))),
        }
    }

    /// Which engine made it: `v1` or `v2`.
    pub fn data_engine(&self) -> &str {
        match self.data_engine.as_ref().map_or("", Doubled::value) {
            "" => "v1",
            engine => engine,
        }
    }

    /// The backing image that the volume stands on: its blocks are not in the store.
    pub fn backing_image(&self) -> &str {
        self.backing_image_name.as_ref().map_or("", Doubled::value)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// When it is none: `Corrupt`.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let mut input = serde_json::Deserializer::from_slice(bytes);
        let config = Fields.deserialize(&mut input).map_err(|error| corrupt(format!("volume.cfg: {error}")))?;
        input.end().map_err(|error| corrupt(format!("volume.cfg: {error}")))?;
        if !is_name(&config.name) {
            return Err(corrupt(format!("volume.cfg: {:?} is no name of a volume", config.name)));
        }
        Ok(config)
    }

    /// The file's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = String::from("{");
        let key = |out: &mut String, name: &str| {
            if out.len() > 1 {
                out.push(',');
            }
            go_json::push_string(out, name);
            out.push(':');
        };
        let texts = [("Name", &self.name), ("Size", &self.size.to_string())];
        for (name, text) in texts {
            key(&mut out, name);
            go_json::push_string(&mut out, text);
        }
        key(&mut out, "Labels");
        go_json::push_map(&mut out, self.labels.as_ref());
        let texts = [
            ("CreatedTime", &self.created),
            ("LastBackupName", &self.last_backup),
            ("LastBackupAt", &self.last_backup_at),
            ("BlockCount", &self.block_count.to_string()),
        ];
        for (name, text) in texts {
            key(&mut out, name);
            go_json::push_string(&mut out, text);
        }
        let doubled = [
            ("BackingImageName", &self.backing_image_name),
            ("BackingImageChecksum", &self.backing_image_checksum),
            ("CompressionMethod", &self.compression),
            ("StorageClassName", &self.storage_class),
            ("DataEngine", &self.data_engine),
        ];
        for (name, field) in doubled {
            if let Some(field) = field {
                key(&mut out, name);
                field.push(&mut out);
            }
        }
        for (name, value) in &self.unknown {
            key(&mut out, name);
            out.push_str(value.get());
        }
        out.push('}');
        out.into_bytes()
    }
}

/// Reads the fields of the file's object.
struct Fields;

impl<'de> DeserializeSeed<'de> for Fields {
    type Value = VolumeConfig;

    fn deserialize<D: serde::Deserializer<'de>>(self, input: D) -> Result<VolumeConfig, D::Error> {
        input.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Fields {
    type Value = VolumeConfig;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<VolumeConfig, M::Error> {
        let mut config = VolumeConfig::default();
        let mut seen = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            let lower = key.to_ascii_lowercase();
            let known = read_field(&mut config, &lower, &mut map)?;
            if known && seen.contains(&lower) {
                return Err(error(format!("{key} twice")));
            }
            if known {
                seen.push(lower);
            } else if config.unknown.len() == MOST_UNKNOWN {
                return Err(error("too many keys"));
            } else {
                let value = map.next_value::<Box<RawValue>>()?;
                config.unknown.push((key, value));
            }
        }
        Ok(config)
    }
}

/// Reads the value of a key that we know; false, and nothing read, if we do not.
fn read_field<'de, M: MapAccess<'de>>(config: &mut VolumeConfig, key: &str, map: &mut M) -> Result<bool, M::Error> {
    match key {
        "name" => config.name = text(map)?,
        "size" => config.size = number(map)?,
        "labels" => config.labels = map.next_value()?,
        "createdtime" => config.created = text(map)?,
        "lastbackupname" => config.last_backup = text(map)?,
        "lastbackupat" => config.last_backup_at = text(map)?,
        "blockcount" => config.block_count = number(map)?,
        "backingimagename" => config.backing_image_name = doubled(map)?,
        "backingimagechecksum" => config.backing_image_checksum = doubled(map)?,
        "compressionmethod" => config.compression = doubled(map)?,
        "storageclassname" => config.storage_class = doubled(map)?,
        "dataengine" => config.data_engine = doubled(map)?,
        _ => return Ok(false),
    }
    Ok(true)
}

/// A text; null is an empty one.
fn text<'de, M: MapAccess<'de>>(map: &mut M) -> Result<String, M::Error> {
    Ok(map.next_value::<Option<String>>()?.unwrap_or_default())
}

/// A decimal number in a string; null is 0.
fn number<'de, M: MapAccess<'de>>(map: &mut M) -> Result<u64, M::Error> {
    let Some(text) = map.next_value::<Option<String>>()? else { return Ok(0) };
    // `parse` takes a sign.
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(error(format!("{text:?} is no size")));
    }
    text.parse().map_err(|_| error(format!("{text:?} is no size")))
}

fn doubled<'de, M: MapAccess<'de>>(map: &mut M) -> Result<Option<Doubled>, M::Error> {
    let outer = map.next_value::<Option<String>>()?;
    outer.map(|outer| Doubled::from_outer(outer).map_err(|failed| error(failed.reason()))).transpose()
}

fn error<E: serde::de::Error>(what: impl fmt::Display) -> E {
    E::custom(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REAL: &str = r#"{"Name":"vol-lz4","Size":"67108864","Labels":{"RecurringJob":"daily \u0026 \u003cx\u003e"},"CreatedTime":"2026-01-01T00:00:00Z","LastBackupName":"backup-2","LastBackupAt":"2026-01-02T00:00:00Z","BlockCount":"5","BackingImageName":"\"\"","BackingImageChecksum":"\"\"","CompressionMethod":"\"lz4\"","StorageClassName":"\"longhorn\"","DataEngine":"\"v2\""}"#;

    fn parse(text: &str) -> Result<VolumeConfig> {
        VolumeConfig::parse(text.as_bytes())
    }

    fn written(config: &VolumeConfig) -> String {
        String::from_utf8(config.to_bytes()).expect("UTF-8")
    }

    #[test]
    fn a_real_file_comes_back_byte_for_byte() {
        let config = parse(REAL).expect("a real file");
        assert_eq!(config.compression(), Ok(Compression::Lz4));
        assert_eq!((config.size, config.block_count, config.data_engine()), (64 << 20, 5, "v2"));
        assert_eq!(config.labels.as_ref().expect("labels")["RecurringJob"], "daily & <x>");
        assert_eq!(written(&config), REAL);
    }

    #[test]
    fn missing_and_null_fields_stay_as_they_are_and_mean_the_old_defaults() {
        let config = parse(r#"{"Name":"old","Size":"2097152","CompressionMethod":null}"#).expect("an old file");
        assert_eq!((config.compression(), config.data_engine()), (Ok(Compression::Gzip), "v1"));
        assert!(!written(&config).contains("CompressionMethod"), "{}", written(&config));
        let empty = parse(r#"{"Name":"old","Size":"1","CompressionMethod":"\"\""}"#).expect("an old file");
        assert_eq!(empty.compression(), Ok(Compression::Gzip));
    }

    #[test]
    fn keys_match_without_case_and_unknown_ones_are_kept() {
        let config = parse(r#"{"NAME":"vol","size":"7","Future":{"a": [1,2.50]},"other":"x"}"#).expect("a file");
        assert_eq!((config.name.as_str(), config.size), ("vol", 7));
        assert!(written(&config).ends_with(r#","Future":{"a": [1,2.50]},"other":"x"}"#), "{}", written(&config));
        assert!(parse(&written(&config)).is_ok());
    }

    #[test]
    fn what_longhorn_cannot_read_is_damage() {
        for text in [
            r#"{"Name":"vol","Size":"1","CompressionMethod":"lz4"}"#,
            r#"{"Name":"vol","Size":"1","DataEngine":""}"#,
            r#"{"Name":"vol","Size":1}"#,
            r#"{"Name":"vol","Size":"-1"}"#,
            r#"{"Name":"vol","Size":"18446744073709551616"}"#,
            r#"{"Name":"vol","name":"other"}"#,
            r#"{"Name":"../x","Size":"1"}"#,
            r#"{"Name":"vol"} x"#,
            r#"{"Name":"vol""#,
            "[]",
            "",
            "\u{feff}{}",
        ] {
            let failed = parse(text).expect_err(text);
            assert_eq!(failed.kind(), crate::Kind::Corrupt, "{text}");
        }
    }

    #[test]
    fn a_new_file_is_one_that_longhorn_reads() {
        let config = VolumeConfig::new("vol", 1 << 30, Compression::Lz4, "2026-01-01T00:00:00Z".to_owned());
        let text = written(&config);
        assert!(
            text.contains(r#""CompressionMethod":"\"lz4\"""#) && text.contains(r#""BackingImageName":"\"\"""#),
            "{text}"
        );
        assert!(text.contains(r#""Size":"1073741824""#) && text.contains(r#""Labels":null"#), "{text}");
        assert_eq!(written(&parse(&text).expect("our own")), text);
    }
}
