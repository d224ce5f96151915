//! Lines that are appended to, over restarts: what is appended survives the end of the process at once, and a power cut once it is synced.
//!
//! ```text
//! FOLDER/N.log     a line each: CRC32C of the text in eight hexadecimal digits, a space, the text, a line feed
//!                  the first text of a file is {"format":1}
//! ```
//! A file that is full is followed by the next number, and the oldest goes. A file is made whole with its first line, as all files of
//! the state directory are. What a power cut left of the last file after its last good line is cut off at the next start.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::file;

const FORMAT: u32 = 1;
const ENDING: &str = ".log";
/// Files that there are, the one that is written included.
const FILES: usize = 2;

/// A log that is open to be appended to.
pub(crate) struct Log {
    folder: PathBuf,
    /// Lines of a file.
    most: usize,
    number: u64,
    file: File,
    /// Bytes of whole lines.
    length: u64,
    lines: usize,
    /// A write failed, and may have left half a line after them.
    is_torn: bool,
}

/// What was in it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    /// Oldest first.
    pub(crate) texts: Vec<String>,
    /// Bytes that were cut off the end.
    pub(crate) cut: u64,
    /// Lines before it that are none.
    pub(crate) damaged: usize,
}

#[derive(Serialize, Deserialize)]
struct Header {
    format: u32,
}

/// A file, read.
struct Content {
    texts: Vec<String>,
    damaged: usize,
    /// Where its last good line ends.
    end: u64,
    length: u64,
}

impl Log {
    /// Opens it, or makes it; each file takes `most` lines. Of a file of another format nothing is read, and nothing is written after it.
    pub(crate) fn open(folder: &Path, most: usize) -> io::Result<(Self, Kept)> {
        file::make_folder(folder)?;
        let mut numbers = numbers(folder)?;
        let Some(last) = numbers.pop_last() else {
            let file = begin(folder, 1)?;
            let length = file.metadata()?.len();
            let log = Self { folder: folder.to_owned(), most, number: 1, file, length, lines: 0, is_torn: false };
            return Ok((log, Kept::default()));
        };
        let mut kept = Kept::default();
        for number in numbers {
            let content = read(&path(folder, number))?;
            kept.damaged += content.damaged + usize::from(content.end < content.length);
            kept.texts.extend(content.texts);
        }
        let content = read(&path(folder, last))?;
        kept.damaged += content.damaged;
        kept.cut = content.length - content.end;
        let lines = content.texts.len();
        kept.texts.extend(content.texts);
        let file = match content.end {
            // Not even its first line.
            0 => begin(folder, last)?,
            end => {
                let file = open(&path(folder, last))?;
                file.set_len(end)?;
                file.sync_all()?;
                file
            }
        };
        let length = file.metadata()?.len();
        Ok((Self { folder: folder.to_owned(), most, number: last, file, length, lines, is_torn: false }, kept))
    }

    /// Appends lines, all or, after an error, some of the first ones. A text has no line feed.
    pub(crate) fn append<'a>(&mut self, texts: impl IntoIterator<Item = &'a str>) -> io::Result<()> {
        let mut texts = texts.into_iter().peekable();
        while texts.peek().is_some() {
            if self.lines >= self.most {
                self.go_on()?;
            }
            let room: Vec<_> = texts.by_ref().take(self.most - self.lines).collect();
            let bytes: String = room.iter().map(|text| line(text)).collect();
            if std::mem::replace(&mut self.is_torn, true) {
                self.file.set_len(self.length)?;
            }
            self.file.write_all(bytes.as_bytes())?;
            self.is_torn = false;
            self.length += bytes.len() as u64;
            self.lines += room.len();
        }
        Ok(())
    }

    /// What was appended survives a power cut, too.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Begins the next file; the oldest goes.
    fn go_on(&mut self) -> io::Result<()> {
        // No file is without what came before it.
        self.sync()?;
        let next = self.number + 1;
        self.file = begin(&self.folder, next)?;
        (self.number, self.length, self.lines, self.is_torn) = (next, self.file.metadata()?.len(), 0, false);
        let numbers = numbers(&self.folder)?;
        let old = numbers.len().saturating_sub(FILES);
        numbers.into_iter().take(old).try_for_each(|number| file::remove(&path(&self.folder, number)))
    }
}

/// The numbers of all files. What a crash left of one that was being made is removed.
fn numbers(folder: &Path) -> io::Result<BTreeSet<u64>> {
    let mut numbers = BTreeSet::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if name.ends_with(file::TEMPORARY) {
            file::remove(&path)?;
        } else if let Some(number) = name.strip_suffix(ENDING).and_then(|number| number.parse().ok()) {
            numbers.insert(number);
        }
    }
    Ok(numbers)
}

/// Makes a file with its first line.
fn begin(folder: &Path, number: u64) -> io::Result<File> {
    let path = path(folder, number);
    let header = serde_json::to_string(&Header { format: FORMAT }).map_err(io::Error::other)?;
    file::replace(&path, line(&header).as_bytes())?;
    open(&path)
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).open(path)
}

fn path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number}{ENDING}"))
}

fn read(path: &Path) -> io::Result<Content> {
    let bytes = fs::read(path)?;
    let mut content = Content { texts: Vec::new(), damaged: 0, end: 0, length: bytes.len() as u64 };
    let (mut place, mut damaged, mut is_first) = (0, 0, true);
    for bytes in bytes.split_inclusive(|byte| *byte == b'\n') {
        place += bytes.len() as u64;
        match text(bytes) {
            Some(text) if is_first => check(path, text)?,
            Some(text) => {
                content.texts.push(text.to_owned());
                content.damaged += std::mem::take(&mut damaged);
            }
            None if is_first => return Ok(content),
            None => {
                damaged += 1;
                continue;
            }
        }
        (content.end, is_first) = (place, false);
    }
    Ok(content)
}

fn check(path: &Path, header: &str) -> io::Result<()> {
    let Header { format } = serde_json::from_str(header)?;
    if format == FORMAT {
        return Ok(());
    }
    let text = format!(
        "{} has format {format}, this version of ashlard knows format {FORMAT} only: run the version that wrote it",
        path.display()
    );
    Err(io::Error::new(io::ErrorKind::InvalidData, text))
}

fn line(text: &str) -> String {
    format!("{:08x} {text}\n", crc_fast::crc32_iscsi(text.as_bytes()))
}

/// What a whole line says.
fn text(line: &[u8]) -> Option<&str> {
    let line = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
    let (crc, text) = line.split_once(' ')?;
    let is_whole = crc.len() == 8 && u32::from_str_radix(crc, 16) == Ok(crc_fast::crc32_iscsi(text.as_bytes()));
    is_whole.then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(range: std::ops::Range<usize>) -> Vec<String> {
        range.map(|number| format!("{{\"number\":{number}}}")).collect()
    }

    fn append(log: &mut Log, texts: &[String]) {
        log.append(texts.iter().map(String::as_str)).expect("appended");
    }

    fn kept(folder: &Path) -> Kept {
        Log::open(folder, 4).expect("opened").1
    }

    #[test]
    fn what_is_on_the_disk_is_pinned() {
        let folder = tempfile::tempdir().expect("a folder");
        let (mut log, _) = Log::open(folder.path(), 4).expect("made");
        append(&mut log, &["text".to_owned()]);
        let expected = "0fb4e832 {\"format\":1}\n2f5319e1 text\n";
        assert_eq!(fs::read_to_string(path(folder.path(), 1)).expect("readable"), expected);
    }

    #[test]
    fn lines_come_back_and_the_oldest_go() {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path().join("events");
        let (mut log, found) = Log::open(&folder, 4).expect("made");
        assert_eq!(found, Kept::default());
        append(&mut log, &texts(0..3));
        drop(log);
        assert_eq!(kept(&folder), Kept { texts: texts(0..3), ..Kept::default() });
        // Over the end of the file, and of the next.
        let (mut log, _) = Log::open(&folder, 4).expect("opened");
        append(&mut log, &texts(3..10));
        log.sync().expect("synced");
        assert_eq!(kept(&folder).texts, texts(4..10));
        assert_eq!(fs::read_dir(&folder).expect("readable").count(), FILES);
    }

    #[test]
    fn wherever_the_end_is_torn_it_is_cut_and_whole_lines_stay() {
        let folder = tempfile::tempdir().expect("a folder");
        let (mut log, _) = Log::open(folder.path(), 100).expect("made");
        append(&mut log, &texts(0..5));
        let path = path(folder.path(), 1);
        let whole = fs::read(&path).expect("readable");
        let ends: Vec<usize> = (0..whole.len()).filter(|at| whole[*at] == b'\n').map(|at| at + 1).collect();
        for length in 0..=whole.len() {
            // The end as it was written, or as blocks that nobody wrote.
            for lost in [Vec::new(), vec![0; 64], vec![0xff; 3]] {
                fs::write(&path, [&whole[..length], &lost].concat()).expect("written");
                let (mut log, found) = Log::open(folder.path(), 100).expect("opened");
                let lines = ends.iter().filter(|end| **end <= length).count();
                assert_eq!(found.texts, texts(0..lines.saturating_sub(1)), "{length}");
                let good = lines.checked_sub(1).map_or(0, |last| ends[last]);
                assert_eq!(found.cut, (length + lost.len() - good) as u64, "{length}");
                append(&mut log, &texts(7..8));
                let again = kept(folder.path());
                assert_eq!((again.cut, again.damaged, again.texts.last()), (0, 0, texts(7..8).last()), "{length}");
            }
        }
    }

    #[test]
    fn a_line_in_the_middle_is_left_out_and_counted() {
        let folder = tempfile::tempdir().expect("a folder");
        let (mut log, _) = Log::open(folder.path(), 100).expect("made");
        append(&mut log, &texts(0..3));
        let path = path(folder.path(), 1);
        let whole = fs::read_to_string(&path).expect("readable");
        fs::write(&path, whole.replace("\"number\":1", "\"number\":9")).expect("written");
        let expected = [texts(0..1), texts(2..3)].concat();
        assert_eq!(kept(folder.path()), Kept { texts: expected, cut: 0, damaged: 1 });
    }

    #[test]
    fn a_file_of_another_format_is_left_as_it_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = path(folder.path(), 1);
        fs::write(&path, line("{\"format\":2}")).expect("written");
        let before = fs::read(&path).expect("readable");
        let error = Log::open(folder.path(), 4).err().expect("refused").to_string();
        assert!(error.contains("has format 2"), "{error}");
        assert_eq!(fs::read(&path).expect("readable"), before);
    }

    #[test]
    fn half_a_line_of_a_write_that_failed_spoils_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let (mut log, _) = Log::open(folder.path(), 100).expect("made");
        append(&mut log, &texts(0..1));
        // As a full disk leaves it.
        (&log.file).write_all(b"0123").expect("written");
        log.is_torn = true;
        append(&mut log, &texts(1..2));
        assert_eq!(kept(folder.path()), Kept { texts: texts(0..2), ..Kept::default() });
    }
}
