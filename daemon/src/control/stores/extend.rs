//! Files that become larger.

use std::fs::OpenOptions;
use std::io;
use std::path::PathBuf;

use crate::control::error::ControlError;

/// Makes a file at least this large, durably. Devices and files that are large enough stay as they are.
pub(super) async fn extend_file(path: PathBuf, size: u64) -> Result<(), ControlError> {
    let shown = path.display().to_string();
    let extend = move || {
        let file = OpenOptions::new().write(true).open(&path)?;
        let found = file.metadata()?;
        if found.is_file() && found.len() < size {
            file.set_len(size)?;
            file.sync_all()?;
        }
        Ok(())
    };
    let extended = tokio::task::spawn_blocking(extend).await.unwrap_or_else(|ended| Err(io::Error::other(ended)));
    extended.map_err(|error| match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ControlError::exhausted(format!("{shown}: {error}"))
        }
        _ => ControlError::precondition("PATH_FAILED", format!("{shown} cannot be made {size} bytes long: {error}")),
    })
}
