//! `backup_NAME.cfg`: one backup, with its list of blocks. Read and written as a stream: at 16 TiB it has 900 MB.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, BufReader, Read, Write};

use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::go_json;
use super::layout::is_name;
use super::quantity;
use crate::block::{self, Checksum, Compression};
use crate::error::{Error, Kind, Result, corrupt};

/// Longest string that is read. Labels are the longest that anybody has.
const LONGEST_STRING: usize = 1 << 20;

/// Most entries of `Labels` or `Parameters`.
const MOST_LABELS: usize = 4096;

/// The parameter with the size of a block.
const BLOCK_SIZE: &str = "backup-block-size";

/// The parameter with the mode.
const MODE: &str = "backup-mode";

/// A block's place and content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockEntry {
    /// Where it is in the volume.
    pub offset: u64,
    /// What it is named after.
    pub checksum: Checksum,
}

/// All of a backup's file but its blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackupConfig {
    /// The backup's name.
    pub name: String,
    /// The volume's name.
    pub volume: String,
    /// The snapshot that it is of.
    pub snapshot: String,
    /// When that was taken.
    pub snapshot_created: String,
    /// When the backup was complete; empty while it is in progress.
    pub created: String,
    /// Bytes of all of its blocks.
    pub size: u64,
    /// Its labels; None is null.
    pub labels: Option<BTreeMap<String, String>>,
    /// Its parameters; None is null.
    pub parameters: Option<BTreeMap<String, String>>,
    /// Whether it was made from a difference.
    pub is_incremental: bool,
    /// How its blocks are packed; empty is gzip.
    pub compression: String,
    /// Packed bytes that were stored for it.
    pub newly_uploaded: u64,
    /// Packed bytes that were there already and stored again.
    pub reuploaded: u64,
}

/// What the list of blocks of a file came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Blocks {
    /// How many.
    pub count: u64,
    /// The last one's offset.
    pub last: u64,
    /// All offsets, or-ed: what they are multiples of.
    bits: u64,
}

impl BackupConfig {
    /// Whether it is complete.
    pub fn is_complete(&self) -> bool {
        !self.created.is_empty()
    }

    /// The size of its blocks.
    ///
    /// # Errors
    /// `Corrupt` when it is none that a block can have.
    pub fn block_size(&self) -> Result<u64> {
        let text = self.parameters.as_ref().and_then(|all| all.get(BLOCK_SIZE)).map_or("", String::as_str);
        if text.is_empty() {
            return Ok(block::DEFAULT_SIZE);
        }
        match quantity::parse(text) {
            Some(0) => Ok(block::DEFAULT_SIZE),
            Some(size) if block::SIZES.contains(&size) => Ok(size),
            _ => Err(corrupt(format!("backup {}: {text:?} is no size of blocks", self.name))),
        }
    }

    /// How its blocks are packed.
    ///
    /// # Errors
    /// `Corrupt` when it is a method that we do not know.
    pub fn compression(&self) -> Result<Compression> {
        match self.compression.as_str() {
            "" => Ok(Compression::Gzip),
            name => {
                Compression::parse(name).ok_or_else(|| corrupt(format!("backup {}: compression {name:?}", self.name)))
            }
        }
    }

    /// The parameters of a backup with blocks of this size.
    pub fn parameters_for(block_size: u64, full: bool) -> BTreeMap<String, String> {
        let mode = if full { "full" } else { "incremental" };
        let pairs = [(BLOCK_SIZE, block_size.to_string()), (MODE, mode.to_owned())];
        pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }

    /// Reads a file, and gives each block to `each` as it comes.
    ///
    /// # Errors
    /// `Corrupt` when it is none, `Interrupted` when `input` ends early or fails, and what `each` returns.
    pub fn parse(input: impl Read, each: &mut dyn FnMut(BlockEntry) -> io::Result<()>) -> Result<(Self, Blocks)> {
        let mut reading = serde_json::Deserializer::from_reader(Bounded::new(BufReader::new(input)));
        let mut parsed = Parsed { config: Self::default(), blocks: Blocks::default() };
        let read = File { parsed: &mut parsed, each }.deserialize(&mut reading).and_then(|()| reading.end());
        read.map_err(read_error)?;
        let Parsed { config, blocks } = parsed;
        if !is_name(&config.name) {
            return Err(corrupt(format!("{:?} is no name of a backup", config.name)));
        }
        if blocks.bits & (config.block_size()? - 1) != 0 {
            return Err(corrupt(format!("backup {}: an offset is no multiple of the size of a block", config.name)));
        }
        config.compression()?;
        Ok((config, blocks))
    }

    /// Writes the file, with `blocks` in their order.
    ///
    /// # Errors
    /// Those of `out` and of `blocks`.
    pub fn write(
        &self,
        out: &mut dyn Write,
        blocks: &mut dyn Iterator<Item = io::Result<BlockEntry>>,
    ) -> io::Result<()> {
        out.write_all(self.head().as_bytes())?;
        let mut count = 0_u64;
        for block in blocks {
            let BlockEntry { offset, checksum } = block?;
            let before = if count == 0 { "\"Blocks\":[" } else { "," };
            write!(out, "{before}{{\"Offset\":{offset},\"BlockChecksum\":\"{checksum}\"}}")?;
            count += 1;
        }
        // Left out when empty, as Longhorn does.
        let after = if count == 0 { "" } else { "]," };
        write!(out, "{after}\"SingleFile\":{{\"FilePath\":\"\"}}}}")
    }

    /// What comes before the blocks.
    fn head(&self) -> String {
        let mut out = String::from("{");
        let texts = [
            ("Name", &self.name),
            ("VolumeName", &self.volume),
            ("SnapshotName", &self.snapshot),
            ("SnapshotCreatedAt", &self.snapshot_created),
            ("CreatedTime", &self.created),
            ("Size", &self.size.to_string()),
        ];
        for (name, text) in texts {
            push_text(&mut out, name, text);
        }
        for (name, map) in [("Labels", &self.labels), ("Parameters", &self.parameters)] {
            go_json::push_string(&mut out, name);
            out.push(':');
            go_json::push_map(&mut out, map.as_ref());
            out.push(',');
        }
        out.push_str(&format!("\"IsIncremental\":{},", self.is_incremental));
        let texts = [
            ("CompressionMethod", &self.compression),
            ("NewlyUploadedDataSize", &self.newly_uploaded.to_string()),
            ("ReUploadedDataSize", &self.reuploaded.to_string()),
        ];
        for (name, text) in texts {
            push_text(&mut out, name, text);
        }
        out.push_str(if self.is_incremental { "\"ProcessingBlocks\":null," } else { "\"ProcessingBlocks\":{}," });
        out
    }
}

fn push_text(out: &mut String, name: &str, text: &str) {
    go_json::push_string(out, name);
    out.push(':');
    go_json::push_string(out, text);
    out.push(',');
}

/// JSON that is wrong is damage; bytes that do not come are an outage, and a sink that fails is our own disk.
fn read_error(error: serde_json::Error) -> Error {
    let text = format!("backup: {error}");
    match error.io_error_kind() {
        None | Some(io::ErrorKind::InvalidData) => corrupt(text),
        Some(io::ErrorKind::StorageFull | io::ErrorKind::WriteZero) => Error::new(Kind::Local, text),
        Some(_) => Error::new(Kind::Interrupted, text),
    }
}

/// Gives bytes on, and fails at a string that is longer than any should be: the parser would hold all of it.
struct Bounded<R> {
    input: R,
    /// Bytes since the string began; None is outside of strings.
    string: Option<usize>,
    escaped: bool,
}

impl<R> Bounded<R> {
    const fn new(input: R) -> Self {
        Self { input, string: None, escaped: false }
    }

    fn look_at(&mut self, byte: u8) -> io::Result<()> {
        match (&mut self.string, byte) {
            (None, b'"') => self.string = Some(0),
            (Some(_), b'"') if !self.escaped => self.string = None,
            (Some(length), _) => {
                *length += 1;
                self.escaped = byte == b'\\' && !self.escaped;
                if *length > LONGEST_STRING {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "a string is too long"));
                }
            }
            (None, _) => {}
        }
        Ok(())
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.input.read(buffer)?;
        buffer[..length].iter().try_for_each(|byte| self.look_at(*byte))?;
        Ok(length)
    }
}

/// What is known of a file so far.
struct Parsed {
    config: BackupConfig,
    blocks: Blocks,
}

type Each<'a> = &'a mut dyn FnMut(BlockEntry) -> io::Result<()>;

/// Reads the file's object.
struct File<'a> {
    parsed: &'a mut Parsed,
    each: Each<'a>,
}

impl<'de> DeserializeSeed<'de> for File<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, input: D) -> Result<(), D::Error> {
        input.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for File<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<(), M::Error> {
        let mut seen = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            let lower = key.to_ascii_lowercase();
            let known = if lower == "blocks" {
                map.next_value_seed(BlockList { blocks: &mut self.parsed.blocks, each: &mut *self.each })?;
                true
            } else {
                read_field(&mut self.parsed.config, &lower, &mut map)?
            };
            if !known {
                map.next_value::<IgnoredAny>()?;
            } else if seen.contains(&lower) {
                return Err(error(format!("{key} twice")));
            } else {
                seen.push(lower);
            }
        }
        Ok(())
    }
}

/// Reads the value of a key that we know; false, and nothing read, if we do not.
fn read_field<'de, M: MapAccess<'de>>(config: &mut BackupConfig, key: &str, map: &mut M) -> Result<bool, M::Error> {
    match key {
        "name" => config.name = text(map)?,
        "volumename" => config.volume = text(map)?,
        "snapshotname" => config.snapshot = text(map)?,
        "snapshotcreatedat" => config.snapshot_created = text(map)?,
        "createdtime" => config.created = text(map)?,
        "size" => config.size = number(map)?,
        "labels" => config.labels = map.next_value_seed(Labels)?,
        "parameters" => config.parameters = map.next_value_seed(Labels)?,
        "isincremental" => config.is_incremental = map.next_value::<Option<bool>>()?.unwrap_or_default(),
        "compressionmethod" => config.compression = text(map)?,
        "newlyuploadeddatasize" => config.newly_uploaded = number(map)?,
        "reuploadeddatasize" => config.reuploaded = number(map)?,
        _ => return Ok(false),
    }
    Ok(true)
}

fn text<'de, M: MapAccess<'de>>(map: &mut M) -> Result<String, M::Error> {
    Ok(map.next_value::<Option<String>>()?.unwrap_or_default())
}

/// A decimal number in a string; null and an empty string, as in files of old versions, are 0.
fn number<'de, M: MapAccess<'de>>(map: &mut M) -> Result<u64, M::Error> {
    let text = text(map)?;
    if text.is_empty() {
        return Ok(0);
    }
    let number = if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None };
    number.ok_or_else(|| error(format!("{text:?} is no size")))
}

/// Reads a map of strings with a bound, or null.
struct Labels;

impl<'de> DeserializeSeed<'de> for Labels {
    type Value = Option<BTreeMap<String, String>>;

    fn deserialize<D: serde::Deserializer<'de>>(self, input: D) -> Result<Self::Value, D::Error> {
        input.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Labels {
    type Value = Option<BTreeMap<String, String>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of strings, or null")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut labels = BTreeMap::new();
        let mut bytes = 0;
        while let Some((key, value)) = map.next_entry::<String, String>()? {
            bytes += key.len() + value.len();
            labels.insert(key, value);
            if labels.len() > MOST_LABELS || bytes > LONGEST_STRING {
                return Err(error("too many labels"));
            }
        }
        Ok(Some(labels))
    }
}

/// Reads the array of blocks, none of which stays.
struct BlockList<'a> {
    blocks: &'a mut Blocks,
    each: Each<'a>,
}

impl<'de> DeserializeSeed<'de> for BlockList<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, input: D) -> Result<(), D::Error> {
        input.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for BlockList<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of blocks, or null")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut sequence: S) -> Result<(), S::Error> {
        let Self { blocks, each } = self;
        while let Some(entry) = sequence.next_element::<Entry>()? {
            let checksum = Checksum::parse(&entry.checksum)
                .ok_or_else(|| error(format!("{:?} is no checksum of a block", entry.checksum)))?;
            if blocks.count > 0 && entry.offset <= blocks.last {
                return Err(error(format!("offset {} after {}", entry.offset, blocks.last)));
            }
            *blocks = Blocks { count: blocks.count + 1, last: entry.offset, bits: blocks.bits | entry.offset };
            each(BlockEntry { offset: entry.offset, checksum }).map_err(error)?;
        }
        Ok(())
    }
}

/// A block as the file has it.
#[derive(serde::Deserialize)]
struct Entry {
    #[serde(rename = "Offset", alias = "offset")]
    offset: u64,
    #[serde(rename = "BlockChecksum", alias = "blockChecksum", alias = "blockchecksum")]
    checksum: String,
}

fn error<E: serde::de::Error>(what: impl fmt::Display) -> E {
    E::custom(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<(BackupConfig, Vec<BlockEntry>)> {
        let mut entries = Vec::new();
        let (config, blocks) = BackupConfig::parse(text.as_bytes(), &mut |entry| {
            entries.push(entry);
            Ok(())
        })?;
        assert_eq!(blocks.count, entries.len() as u64);
        Ok((config, entries))
    }

    fn written(config: &BackupConfig, entries: &[BlockEntry]) -> String {
        let mut out = Vec::new();
        config.write(&mut out, &mut entries.iter().copied().map(Ok)).expect("memory takes it");
        String::from_utf8(out).expect("UTF-8")
    }

    fn with_blocks(blocks: &str) -> String {
        format!(r#"{{"Name":"backup-1","CreatedTime":"","Blocks":{blocks}}}"#)
    }

    fn block(offset: u64) -> String {
        format!(r#"{{"Offset":{offset},"BlockChecksum":"{}"}}"#, Checksum::of(&offset.to_le_bytes()))
    }

    #[test]
    fn blocks_come_back_in_their_order() {
        let text = with_blocks(&format!("[{},{}]", block(0), block(4 << 20)));
        let (config, entries) = parse(&text).expect("a file");
        assert_eq!(entries.iter().map(|entry| entry.offset).collect::<Vec<_>>(), [0, 4 << 20]);
        let again = parse(&written(&config, &entries)).expect("our own");
        assert_eq!(again, (config, entries));
    }

    #[test]
    fn a_backup_without_blocks_leaves_them_out() {
        let config = BackupConfig { name: "backup-1".to_owned(), ..BackupConfig::default() };
        let text = written(&config, &[]);
        assert!(!text.contains("\"Blocks\"") && text.ends_with(r#""SingleFile":{"FilePath":""}}"#), "{text}");
        assert_eq!(parse(&text).expect("our own").1, []);
    }

    #[test]
    fn the_size_of_blocks_is_a_quantity() {
        let sized = |text: &str| {
            let parameters = BTreeMap::from([(BLOCK_SIZE.to_owned(), text.to_owned())]);
            BackupConfig { parameters: Some(parameters), ..BackupConfig::default() }.block_size()
        };
        assert_eq!(BackupConfig::default().block_size(), Ok(2 << 20));
        for (text, size) in [("", 2 << 20), ("0", 2 << 20), ("2097152", 2 << 20), ("16Mi", 16 << 20)] {
            assert_eq!(sized(text), Ok(size), "{text}");
        }
        for text in ["1", "4Mi", "-2097152", "x"] {
            assert!(sized(text).is_err(), "{text}");
        }
    }

    #[test]
    fn hostile_files_are_damage() {
        let unaligned = with_blocks(&format!("[{}]", block(4096)));
        let twice = with_blocks(&format!("[{},{}]", block(2 << 20), block(2 << 20)));
        let back = with_blocks(&format!("[{},{}]", block(4 << 20), block(2 << 20)));
        let nested = format!(r#"{{"Name":"backup-1","x":{}"#, "[".repeat(100_000));
        let large_blocks = r#"{"Name":"backup-1","Parameters":{"backup-block-size":"16Mi"},"Blocks":[{"Offset":2097152,"BlockChecksum":"06ad750766c32802c80cef24718099b6da58461b2193f5622e872e30b5581c32"}]}"#;
        for text in [
            unaligned.as_str(),
            &twice,
            &back,
            &nested,
            large_blocks,
            &with_blocks(r#"[{"Offset":-1,"BlockChecksum":""}]"#),
            &with_blocks(r#"[{"Offset":0,"BlockChecksum":"zz"}]"#),
            &with_blocks(r#"[{"Offset":1e30,"BlockChecksum":"zz"}]"#),
            &with_blocks("{}"),
            r#"{"Name":"backup-1","Blocks":null,"blocks":[]}"#,
            r#"{"Name":"a/b"}"#,
            r#"{"Name":"backup-1","CompressionMethod":"zstd"}"#,
            r#"{"Name":"backup-1"}{}"#,
            "{}",
            "",
        ] {
            let failed = parse(text).expect_err(text);
            assert!([Kind::Corrupt, Kind::Interrupted].contains(&failed.kind()), "{text}: {failed}");
        }
    }

    #[test]
    fn a_string_without_end_is_not_held() {
        let endless = io::Read::chain(&b"{\"x\":\""[..], io::repeat(b'a'));
        let failed = BackupConfig::parse(endless, &mut |_| Ok(())).expect_err("no end");
        assert_eq!(failed.kind(), Kind::Corrupt);
        assert!(failed.reason().contains("too long"), "{failed}");
    }

    #[test]
    fn bytes_that_do_not_come_are_an_outage() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::ConnectionReset.into())
            }
        }
        let failed = BackupConfig::parse(b"{\"Name\":".chain(Broken), &mut |_| Ok(())).expect_err("broken");
        assert_eq!(failed.kind(), Kind::Interrupted);
    }
}
