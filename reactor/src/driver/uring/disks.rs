//! Opening files and block devices as disks.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::atomic;
use super::descriptors::Kind;
use crate::disk::DiskOptions;

/// Alignment is never below a sector, and never above what every buffer has.
pub(super) const LEAST_ALIGNMENT: u32 = 512;
pub(super) const MOST_ALIGNMENT: u32 = 4096;

/// A disk just opened and locked.
pub(super) struct OpenedDisk {
    pub(super) file: OwnedFd,
    pub(super) kind: Kind,
    pub(super) size: u64,
    pub(super) alignment: u32,
    pub(super) atomic_write: u32,
}

/// Opens, locks and measures a disk.
///
/// # Errors
/// `WouldBlock`, naming the path, when it is in use; `InvalidInput` for what is neither a file nor a block device.
pub(super) fn open(path: &Path, options: &DiskOptions) -> io::Result<OpenedDisk> {
    let (file, direct) = open_file(path, options).map_err(|error| explain(path, error))?;
    let kind = file.metadata()?.file_type();
    lock(&file, path)?;
    if kind.is_block_device() {
        let (size, alignment) = measure_device(&file).map_err(|error| explain(path, error))?;
        let atomic_write = atomic_unit(file.metadata()?.rdev()).max(alignment);
        return Ok(OpenedDisk { file: file.into(), kind: Kind::BlockDevice, size, alignment, atomic_write });
    }
    if !kind.is_file() {
        let text = format!("{}: neither a file nor a block device", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    if let Some(size) = options.create.filter(|_| !options.read_only) {
        grow_new(&file, path, size).map_err(|error| explain(path, error))?;
    }
    let size = file.metadata()?.len();
    let alignment = if direct { direct_alignment(path) } else { LEAST_ALIGNMENT };
    let atomic_write = file_atomic_unit(&file)?;
    Ok(OpenedDisk { file: file.into(), kind: Kind::File { direct }, size, alignment, atomic_write })
}

fn atomic_unit(device: u64) -> u32 {
    atomic::unit_of(Path::new(atomic::DEVICES), libc::major(device), libc::minor(device))
}

/// A file's blocks lie on its device as blocks of the file system: what is larger can be in two places.
fn file_atomic_unit(file: &File) -> io::Result<u32> {
    let unit = atomic_unit(file.metadata()?.dev());
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut status: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the structure lives through the call, which fills it.
    if unsafe { libc::fstatfs(file.as_raw_fd(), &mut status) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let block = u32::try_from(status.f_bsize).ok().filter(|block| block.is_power_of_two());
    Ok(unit.min(block.unwrap_or(LEAST_ALIGNMENT)).max(LEAST_ALIGNMENT))
}

/// Changes the size of a file, durably.
pub(super) fn resize(file: &OwnedFd, kind: Kind, size: u64) -> io::Result<()> {
    if !matches!(kind, Kind::File { .. }) {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "a block device keeps its size"));
    }
    let file = File::from(file.try_clone()?);
    file.set_len(size)?;
    file.sync_all()
}

/// The size of an open disk now.
pub(super) fn measure(file: &OwnedFd, kind: Kind) -> io::Result<u64> {
    let file = File::from(file.try_clone()?);
    match kind {
        Kind::BlockDevice => measure_device(&file).map(|(size, _)| size),
        _ => Ok(file.metadata()?.len()),
    }
}

fn open_file(path: &Path, options: &DiskOptions) -> io::Result<(File, bool)> {
    let mut how = OpenOptions::new();
    how.read(true).write(!options.read_only).create(options.create.is_some() && !options.read_only);
    // A block device that is mounted or part of another refuses O_EXCL; files ignore it without O_CREAT.
    let is_device = std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device());
    let exclusive = if is_device { libc::O_EXCL } else { 0 };
    if is_device {
        how.create(false);
    }
    match how.custom_flags(libc::O_DIRECT | exclusive).open(path) {
        Ok(file) => Ok((file, true)),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) && options.buffered => {
            Ok((how.custom_flags(exclusive).open(path)?, false))
        }
        Err(error) => Err(error),
    }
}

/// One opener at a time, in this process or another; the lock goes with the descriptor, also at a kill.
fn lock(file: &File, path: &Path) -> io::Result<()> {
    // SAFETY: no memory is passed.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
        return Ok(());
    }
    Err(explain(path, io::Error::last_os_error()))
}

/// Gives the lock back. The ring lets go of a file some time after its last operation and after its place in the table is empty; until then
/// the lock would stay with it, and whoever opens the disk next would be refused.
pub(super) fn unlock(file: &OwnedFd) {
    // SAFETY: no memory is passed.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_UN) } != 0 {
        tracing::error!(error = %io::Error::last_os_error(), "a disk's lock cannot be given back before it is closed");
    }
}

/// A file that was just made, or made but not sized before a crash, gets its size; one with content keeps it.
fn grow_new(file: &File, path: &Path, size: u64) -> io::Result<()> {
    if file.metadata()?.len() > 0 {
        return Ok(());
    }
    file.set_len(size)?;
    file.sync_all()?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

fn measure_device(file: &File) -> io::Result<(u64, u32)> {
    let (mut size, mut sector) = (0_u64, 0_i32);
    // SAFETY: BLKGETSIZE64 fills a u64, BLKSSZGET an int; both live through the calls.
    let failed = unsafe {
        libc::ioctl(file.as_raw_fd(), BLKGETSIZE64, &mut size) < 0
            || libc::ioctl(file.as_raw_fd(), BLKSSZGET, &mut sector) < 0
    };
    if failed {
        return Err(io::Error::last_os_error());
    }
    match u32::try_from(sector) {
        Ok(sector) if sector.is_power_of_two() && sector <= MOST_ALIGNMENT => Ok((size, sector.max(LEAST_ALIGNMENT))),
        _ => Err(io::Error::new(io::ErrorKind::Unsupported, format!("sectors of {sector} bytes are not supported"))),
    }
}

/// Size of a block device in bytes, from linux/fs.h: `_IOR(0x12, 114, size_t)`.
const BLKGETSIZE64: libc::Ioctl = 0x8008_1272_u32 as libc::Ioctl;
/// Logical sector size in bytes, from linux/fs.h: `_IO(0x12, 104)`.
const BLKSSZGET: libc::Ioctl = 0x1268;

/// What the file system asks of direct I/O; the safe answer where it does not say.
fn direct_alignment(path: &Path) -> u32 {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return MOST_ALIGNMENT };
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut status: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is terminated, and the structure lives through the call, which fills it.
    let result = unsafe { libc::statx(libc::AT_FDCWD, path.as_ptr(), 0, libc::STATX_DIOALIGN, &mut status) };
    if result != 0 || status.stx_mask & libc::STATX_DIOALIGN == 0 {
        return MOST_ALIGNMENT;
    }
    let asked = status.stx_dio_offset_align.max(status.stx_dio_mem_align);
    if asked == 0 || asked > MOST_ALIGNMENT { MOST_ALIGNMENT } else { asked.next_power_of_two().max(LEAST_ALIGNMENT) }
}

/// Names the path, and says what "busy" means here.
fn explain(path: &Path, error: io::Error) -> io::Error {
    let path = path.display();
    match error.raw_os_error() {
        Some(libc::EWOULDBLOCK | libc::EBUSY | libc::ETXTBSY) => {
            io::Error::new(io::ErrorKind::WouldBlock, format!("{path}: in use by another process or store"))
        }
        Some(libc::EINVAL) => {
            let text = format!("{path}: cannot be opened for direct I/O (O_DIRECT)");
            io::Error::new(io::ErrorKind::Unsupported, text)
        }
        _ => io::Error::new(error.kind(), format!("{path}: {error}")),
    }
}
