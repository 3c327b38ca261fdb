//! What was odd about a layer without being a reason to refuse it.

use std::collections::HashMap;

use crate::error::shown;

/// Stable names of warnings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Warning {
    /// A name occurs twice in one layer; the last entry counts.
    DuplicateEntry,
    /// AUFS bookkeeping was left out.
    AufsMetadataIgnored,
    /// A device was left out.
    DeviceSkipped,
    /// Set-id bits were dropped because owners are not applied.
    SetidDropped,
    /// An extended attribute was left out or the file system refused it.
    XattrIgnored,
}

impl Warning {
    /// The stable name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DuplicateEntry => "duplicate_entry",
            Self::AufsMetadataIgnored => "aufs_metadata_ignored",
            Self::DeviceSkipped => "device_skipped",
            Self::SetidDropped => "setid_dropped",
            Self::XattrIgnored => "xattr_ignored",
        }
    }
}

/// The warnings of an image. Of each kind the first ones name their entry, the others are counted.
#[derive(Debug, Default)]
pub struct Warnings {
    named: Vec<(Warning, String)>,
    counts: HashMap<Warning, u64>,
}

impl Warnings {
    const NAMED: u64 = 100;

    /// Note a warning about the entry at `path`.
    pub fn add(&mut self, warning: Warning, path: &[u8]) {
        let count = self.counts.entry(warning).or_default();
        *count += 1;
        if *count <= Self::NAMED {
            self.named.push((warning, shown(path)));
        }
    }

    /// Warnings with the escaped path of their entry, or with the number of further entries.
    pub fn finish(self) -> Vec<(Warning, String)> {
        let mut out = self.named;
        for (warning, count) in self.counts {
            if count > Self::NAMED {
                out.push((warning, format!("and {} more", count - Self::NAMED)));
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_warnings_take_no_memory() {
        let mut warnings = Warnings::default();
        for _ in 0..1000 {
            warnings.add(Warning::DuplicateEntry, b"a\n");
        }
        let found = warnings.finish();
        assert_eq!(found.len(), 101);
        assert_eq!(found[0], (Warning::DuplicateEntry, "'a\\n'".into()));
        assert_eq!(found[100].1, "and 900 more");
    }
}
