//! The blob format: a writer that reproduces libfdt 1.6's sequential-write output.
//!
//! Source: Devicetree Specification v0.4, chapter 5 (Flattened Devicetree format, version 17).
//! What the specification leaves open (order of the string table, sharing of name tails, padding)
//! is libfdt's choice and measured, hence reproduced.

use crate::Error;

/// Size of the area that kvmtool reserves for a device tree (`FDT_MAX_SIZE`).
pub const AREA_SIZE: usize = 0x10000;

const MAGIC: u32 = 0xd00d_feed;
const VERSION: u32 = 17;
const LAST_COMPATIBLE_VERSION: u32 = 16;
const HEADER_SIZE: usize = 40;
const RESERVATION_MAP_SIZE: usize = 16;
const STRUCT_OFFSET: usize = HEADER_SIZE + RESERVATION_MAP_SIZE;
/// libfdt aligns the reservation map to 8 bytes while the blob is being built.
const UNPACKED_STRUCT_OFFSET: usize = STRUCT_OFFSET + STALE_SIZE;
/// Packing moves the blob down by this much and leaves its old tail in place.
const STALE_SIZE: usize = 8;

const TOKEN_BEGIN_NODE: u32 = 1;
const TOKEN_END_NODE: u32 = 2;
const TOKEN_PROPERTY: u32 = 3;
const TOKEN_END: u32 = 9;

/// Writes nodes and properties in order; consumed by [`Writer::finish`].
#[derive(Debug, Default)]
pub struct Writer {
    structure: Vec<u8>,
    /// Names with NUL, the most recently added one first.
    strings: Vec<u8>,
    /// Where a name offset stands in `structure`, and how far its name begins before the end of `strings`.
    name_references: Vec<(usize, usize)>,
}

impl Writer {
    /// Start an empty tree.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Write a node called `name`; `body` writes its properties and then its children.
    pub fn node(&mut self, name: &str, body: impl FnOnce(&mut Self)) {
        self.token(TOKEN_BEGIN_NODE);
        self.structure.extend_from_slice(name.as_bytes());
        self.structure.push(0);
        self.pad();
        body(self);
        self.token(TOKEN_END_NODE);
    }

    /// Write a property with raw bytes.
    pub fn property(&mut self, name: &str, data: &[u8]) {
        let from_end = self.intern(name);
        self.token(TOKEN_PROPERTY);
        self.token(u32::try_from(data.len()).unwrap_or(u32::MAX));
        self.name_references.push((self.structure.len(), from_end));
        self.token(0);
        self.structure.extend_from_slice(data);
        self.pad();
    }

    /// Write a property of no bytes, whose presence is its value.
    pub fn empty(&mut self, name: &str) {
        self.property(name, &[]);
    }

    /// Write a property of 32-bit cells.
    pub fn cells(&mut self, name: &str, cells: &[u32]) {
        let data: Vec<u8> = cells.iter().flat_map(|cell| cell.to_be_bytes()).collect();
        self.property(name, &data);
    }

    /// Write a property of 64-bit numbers.
    pub fn u64s(&mut self, name: &str, numbers: &[u64]) {
        let data: Vec<u8> = numbers
            .iter()
            .flat_map(|number| number.to_be_bytes())
            .collect();
        self.property(name, &data);
    }

    /// Write a property of NUL-terminated strings.
    pub fn strings(&mut self, name: &str, strings: &[&[u8]]) {
        let mut data = Vec::new();
        for string in strings {
            data.extend_from_slice(string);
            data.push(0);
        }
        self.property(name, &data);
    }

    /// Write a property of one NUL-terminated string.
    pub fn string(&mut self, name: &str, string: &str) {
        self.strings(name, &[string.as_bytes()]);
    }

    /// End the tree.
    ///
    /// # Errors
    /// [`Error::TooLarge`] if libfdt would run out of its [`AREA_SIZE`] bytes.
    pub fn finish(mut self) -> Result<Blob, Error> {
        self.token(TOKEN_END);
        let needed = UNPACKED_STRUCT_OFFSET + self.structure.len() + self.strings.len();
        if needed > AREA_SIZE {
            return Err(Error::TooLarge {
                needed,
                limit: AREA_SIZE,
            });
        }
        for (position, from_end) in &self.name_references {
            let offset = (self.strings.len() - from_end) as u32;
            self.structure[*position..position + 4].copy_from_slice(&offset.to_be_bytes());
        }
        Ok(self.assemble())
    }

    fn assemble(self) -> Blob {
        let strings_offset = STRUCT_OFFSET + self.structure.len();
        let header = [
            MAGIC,
            (strings_offset + self.strings.len()) as u32,
            STRUCT_OFFSET as u32,
            strings_offset as u32,
            HEADER_SIZE as u32,
            VERSION,
            LAST_COMPATIBLE_VERSION,
            0, // boot_cpuid_phys
            self.strings.len() as u32,
            self.structure.len() as u32,
        ];
        let mut bytes: Vec<u8> = header.iter().flat_map(|cell| cell.to_be_bytes()).collect();
        bytes.extend_from_slice(&[0; RESERVATION_MAP_SIZE]);
        bytes.extend_from_slice(&self.structure);
        bytes.extend_from_slice(&self.strings);
        Blob {
            bytes,
            strings_size: self.strings.len(),
        }
    }

    /// Find or add `name`; returns how far before the end of the string table it begins.
    ///
    /// The table grows downwards, so that distance never changes. The search runs from the low end at
    /// every byte offset: a name that is the tail of another one shares its bytes.
    fn intern(&mut self, name: &str) -> usize {
        let mut entry = name.as_bytes().to_vec();
        entry.push(0);
        if let Some(offset) = self
            .strings
            .windows(entry.len())
            .position(|window| window == entry)
        {
            return self.strings.len() - offset;
        }
        entry.append(&mut self.strings);
        self.strings = entry;
        self.strings.len()
    }

    fn token(&mut self, value: u32) {
        self.structure.extend_from_slice(&value.to_be_bytes());
    }

    fn pad(&mut self) {
        self.structure
            .resize(self.structure.len().next_multiple_of(4), 0);
    }
}

/// A finished, packed tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    bytes: Vec<u8>,
    strings_size: usize,
}

impl Blob {
    /// The blob itself: as many bytes as its `totalsize` field says.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The [`AREA_SIZE`] bytes that the VMM copies into the guest.
    ///
    /// Behind the blob stand the last 8 bytes of its string table once more: packing moved the blob
    /// down by 8 bytes and nobody cleared what was left. The rest is zero.
    #[must_use]
    pub fn area(&self) -> Vec<u8> {
        let mut area = self.bytes.clone();
        let stale = self.bytes.len() - self.strings_size.min(STALE_SIZE);
        area.extend_from_within(stale..);
        area.resize(AREA_SIZE, 0);
        area
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn strings_of(blob: &Blob) -> &[u8] {
        &blob.bytes()[blob.bytes().len() - blob.strings_size..]
    }

    #[test]
    fn names_stand_in_reverse_order_and_share_tails() {
        let mut writer = Writer::new();
        writer.node("", |w| {
            w.empty("interrupt-parent");
            w.empty("enable-method");
            w.empty("method");
            w.empty("interrupt-parent");
        });
        let blob = writer.finish().unwrap();
        assert_eq!(strings_of(&blob), b"enable-method\0interrupt-parent\0");
        // BEGIN, name, then four properties of 12 bytes; the third points into the first name.
        assert_eq!(
            blob.bytes()[STRUCT_OFFSET + 8 + 2 * 12 + 8..][..4],
            7u32.to_be_bytes()
        );
    }

    #[test]
    fn a_name_that_only_begins_another_is_added() {
        let mut writer = Writer::new();
        writer.node("", |w| {
            w.empty("regular");
            w.empty("reg");
        });
        assert_eq!(strings_of(&writer.finish().unwrap()), b"reg\0regular\0");
    }

    #[test]
    fn the_area_repeats_the_tail_of_the_strings() {
        let mut writer = Writer::new();
        writer.node("", |w| w.cells("interrupt-parent", &[1]));
        let blob = writer.finish().unwrap();
        let area = blob.area();
        let size = blob.bytes().len();
        assert_eq!(area.len(), AREA_SIZE);
        assert_eq!(&area[size..size + 9], b"-parent\0\0");
        assert!(area[size + 8..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_tree_that_does_not_fit_is_refused() {
        let tree = |size: usize| {
            let mut writer = Writer::new();
            writer.node("", |w| w.property("p", &vec![0; size]));
            writer.finish()
        };
        // 64 + (8 + 12 + size + 8) + 2 bytes must not exceed 65536.
        assert!(tree(65440).is_ok());
        assert_eq!(
            tree(65444).unwrap_err(),
            Error::TooLarge {
                needed: 65538,
                limit: AREA_SIZE
            }
        );
    }

    proptest! {
        #[test]
        fn sizes_in_the_header_are_those_of_the_blob(properties in prop::collection::vec(("[a-z]{1,12}", prop::collection::vec(any::<u8>(), 0..40)), 0..20)) {
            let mut writer = Writer::new();
            writer.node("", |w| for (name, data) in &properties { w.property(name, data) });
            let blob = writer.finish().unwrap();
            let field = |index: usize| u32::from_be_bytes(blob.bytes()[index * 4..][..4].try_into().unwrap()) as usize;
            prop_assert_eq!(field(1), blob.bytes().len());
            prop_assert_eq!(field(3) + field(8), blob.bytes().len());
            prop_assert_eq!(field(2) + field(9), field(3));
            prop_assert_eq!(&blob.bytes()[field(3) - 4..field(3)], &TOKEN_END.to_be_bytes());
        }
    }
}
