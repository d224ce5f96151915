//! Tests that leave themselves out, and why that is right. The same list is in docs/iscsi.md; a skip that is not here fails.

/// A test, or a suite of which every test may, and the reason.
const SKIPS: &[(&str, &str)] = &[
    ("CompareAndWrite.InvalidDataOutSize", "for units with several blocks in a physical one; here it is the same"),
    ("KernelFileSystem", "needs root, FUSE and loop devices"),
    ("PreventAllow", "for units with removable media"),
    ("ReadDefectData10", "READ DEFECT DATA is for disks with defects of their own"),
    ("ReadDefectData12", "READ DEFECT DATA is for disks with defects of their own"),
    ("ReadOnly.ReadOnlySBC", "for units that are write-protected as a whole"),
    ("Sanitize", "SANITIZE is not supported: blocks of snapshots and of other volumes share the disk"),
    ("StartStopUnit.Simple", "for units with removable media"),
    ("MultipathIO", "needs a second URL; multipath is tested in the guest"),
    ("WriteAtomic16", "WRITE ATOMIC is not supported"),
    ("WriteSame10.ZeroBlocks", "WRITE SAME of no blocks is refused (WSNZ)"),
    ("WriteSame10.UnmapUnaligned", "for units with several blocks in a physical one; here it is the same"),
    ("WriteSame10.InvalidDataOutSize", "for units with several blocks in a physical one; here it is the same"),
    ("WriteSame16.ZeroBlocks", "WRITE SAME of no blocks is refused (WSNZ)"),
    ("WriteSame16.UnmapUnaligned", "for units with several blocks in a physical one; here it is the same"),
    ("WriteSame16.InvalidDataOutSize", "for units with several blocks in a physical one; here it is the same"),
];

/// Why a test may leave itself out.
pub(crate) fn reason(test: &str) -> Option<&'static str> {
    let applies = |name: &str| test.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    SKIPS.iter().find(|(name, _)| applies(name)).map(|(_, reason)| *reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_for_a_test_or_for_a_suite() {
        assert!(reason("Sanitize.Reset").is_some() && reason("ReadOnly.ReadOnlySBC").is_some());
        assert_eq!(reason("SanitizeMore.Reset"), None);
        assert_eq!(reason("StartStopUnit.PwrCnd"), None);
    }

    #[test]
    fn the_documentation_lists_them_all() {
        let document = include_str!("../../../docs/iscsi.md");
        for (test, reason) in SKIPS {
            assert!(document.contains(&format!("| {test} | {reason} |")), "{test}");
        }
    }
}
