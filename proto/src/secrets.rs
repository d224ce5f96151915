//! Secrets are in requests only, and never printed.

use std::fmt;

use crate::v1::ChapCredentials;

impl fmt::Debug for ChapCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChapCredentials").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{ChapSettings, ExportVolumeRequest};

    #[test]
    fn a_request_prints_no_secret() {
        let credentials = ChapCredentials { name: "someone".into(), secret: "twelve chars".into() };
        let chap = ChapSettings { initiator: Some(credentials.clone()), ..ChapSettings::default() };
        let request = ExportVolumeRequest { chap: Some(chap), ..ExportVolumeRequest::default() };
        let printed = format!("{request:?} {request:#?}");
        assert!(printed.contains("someone") && !printed.contains("twelve"), "{printed}");
    }
}
