//! Where kvmtool puts kernel, initrd and device tree.
//!
//! Source: kvmtool `arm/kvm.c` (`kvm__arch_load_kernel_image`, `kvm__load_firmware`) and
//! `arm/aarch64/kvm.c` (`kvm__arch_get_kern_offset`); Linux `Documentation/arch/arm64/booting.rst`
//! for the Image header.

use crate::GRANULE_SIZE;

/// Bytes of the arm64 Image header.
pub const HEADER_SIZE: usize = 64;
/// text_offset and image_size above this are refused.
pub const MAX_HEADER_VALUE: u64 = 1 << 40;

const HEADER_MAGIC: &[u8; 4] = b"ARM\x64";
/// Where a kernel without a usable header goes.
const DEFAULT_TEXT_OFFSET: u64 = 0x8_0000;
/// Kernel, initrd and device tree share this much of low memory.
const LOW_MEMORY: u64 = 256 << 20;
/// Room for the device tree below the end of low memory, before alignment.
const DEVICE_TREE_ROOM: u64 = 0x21_0000;
const DEVICE_TREE_ALIGN: u64 = 2 << 20;
const INITRD_ALIGN: u64 = 4;
const DEFAULT_RAM_BASE: u64 = 0x8000_0000;

/// What does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// RAM ends beyond the 64-bit address space (its last page included, so that page ends never wrap).
    #[error("RAM of {size} bytes at {base:#x} ends beyond the address space")]
    RamTooLarge {
        /// First address.
        base: u64,
        /// Bytes.
        size: u64,
    },
    /// RAM begins within the devices.
    #[error("RAM base {0:#x} is below {DEFAULT_RAM_BASE:#x}, where the devices are")]
    RamBaseLow(u64),
    /// RAM does not begin at a page.
    #[error("RAM base {0:#x} is not page aligned")]
    RamBaseUnaligned(u64),
    /// The kernel does not fit below the end of low memory.
    #[error(
        "the kernel ({size} bytes, loaded at {start:#x}) does not fit into the realm's memory"
    )]
    Kernel {
        /// Load address.
        start: u64,
        /// File size.
        size: u64,
    },
    /// A header field is beyond reason.
    #[error(
        "the kernel header's {field} is {value:#x}; at most {MAX_HEADER_VALUE:#x} is supported"
    )]
    Header {
        /// `text_offset` or `image_size`.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// No room for the device tree above the kernel.
    #[error("the device tree does not fit into the realm's memory above the kernel or firmware")]
    DeviceTree,
    /// No room for the initrd between kernel and device tree.
    #[error("the initrd ({0} bytes) does not fit between the kernel and the device tree")]
    Initrd(u64),
    /// The firmware is outside RAM.
    #[error("the firmware ({size} bytes at {start:#x}) does not fit into the realm's memory")]
    Firmware {
        /// Load address.
        start: u64,
        /// File size.
        size: u64,
    },
}

/// The realm's RAM, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ram {
    base: u64,
    size: u64,
    end: u64,
}

impl Ram {
    /// Check base and size.
    ///
    /// # Errors
    /// [`LayoutError::RamBaseLow`], [`LayoutError::RamBaseUnaligned`], [`LayoutError::RamTooLarge`].
    pub fn new(base: u64, size: u64) -> Result<Self, LayoutError> {
        if base < DEFAULT_RAM_BASE {
            return Err(LayoutError::RamBaseLow(base));
        }
        if !base.is_multiple_of(GRANULE_SIZE) {
            return Err(LayoutError::RamBaseUnaligned(base));
        }
        let end = base
            .checked_add(size)
            .filter(|end| *end <= u64::MAX - GRANULE_SIZE);
        let end = end.ok_or(LayoutError::RamTooLarge { base, size })?;
        Ok(Self { base, size, end })
    }

    /// Address of the last byte of low memory.
    fn low_limit(&self) -> Option<u64> {
        (self.base + self.size.min(LOW_MEMORY)).checked_sub(1)
    }
}

/// The fields of an arm64 Image header that matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageHeader {
    text_offset: u64,
    image_size: u64,
}

impl ImageHeader {
    /// Read a header; None for a file that is no arm64 Image or whose image_size is 0 (before Linux 3.17).
    ///
    /// # Errors
    /// [`LayoutError::Header`].
    pub fn parse(bytes: &[u8; HEADER_SIZE]) -> Result<Option<Self>, LayoutError> {
        let field = |offset: usize| {
            let mut number = [0; 8];
            number.copy_from_slice(&bytes[offset..offset + 8]);
            u64::from_le_bytes(number)
        };
        let header = Self {
            text_offset: field(0x08),
            image_size: field(0x10),
        };
        if bytes[0x38..0x3c] != *HEADER_MAGIC {
            return Ok(None);
        }
        for (name, value) in [
            ("text_offset", header.text_offset),
            ("image_size", header.image_size),
        ] {
            if value > MAX_HEADER_VALUE {
                return Err(LayoutError::Header { field: name, value });
            }
        }
        Ok(Some(header).filter(|header| header.image_size != 0))
    }
}

/// Where everything is. All addresses are intermediate physical addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Load address and entry point of kernel or firmware.
    pub entry: u64,
    /// Bytes that kernel or firmware occupy in memory; more or less than the file has.
    pub memory_size: u64,
    /// Address of the device tree.
    pub device_tree: u64,
    /// Address of the initrd.
    pub initrd: Option<u64>,
}

impl Layout {
    /// The layout of a kernel boot.
    ///
    /// # Errors
    /// What does not fit.
    pub fn of_kernel(
        ram: &Ram,
        header: Option<ImageHeader>,
        kernel_size: u64,
        initrd_size: Option<u64>,
    ) -> Result<Self, LayoutError> {
        let text_offset = header.map_or(DEFAULT_TEXT_OFFSET, |header| header.text_offset);
        let entry = ram.base.saturating_add(text_offset);
        let no_room = LayoutError::Kernel {
            start: entry,
            size: kernel_size,
        };
        let limit = ram.low_limit().ok_or(LayoutError::DeviceTree)?;
        if limit
            .checked_sub(entry)
            .is_none_or(|room| kernel_size > room)
        {
            return Err(no_room);
        }
        let kernel_end = entry + kernel_size;
        let device_tree = device_tree_below(limit)
            .filter(|(lowest, address)| *lowest >= ram.base && *address >= kernel_end)
            .map(|(_, address)| address)
            .ok_or(LayoutError::DeviceTree)?;
        let initrd = match initrd_size {
            None => None,
            Some(size) => {
                let address = initrd_below(device_tree, size)
                    .filter(|address| *address >= ram.base && *address >= kernel_end)
                    .ok_or(LayoutError::Initrd(size))?;
                Some(address)
            }
        };
        let memory_size = header.map_or(kernel_size, |header| header.image_size);
        Ok(Self {
            entry,
            memory_size,
            device_tree,
            initrd,
        })
    }

    /// The layout of a firmware boot; `address` 0 means the start of RAM.
    ///
    /// # Errors
    /// What does not fit.
    pub fn of_firmware(
        ram: &Ram,
        header: Option<ImageHeader>,
        size: u64,
        address: u64,
    ) -> Result<Self, LayoutError> {
        let entry = if address == 0 { ram.base } else { address };
        let room = if entry < ram.base {
            None
        } else {
            ram.end.checked_sub(entry)
        };
        if room.is_none_or(|room| size > room) {
            return Err(LayoutError::Firmware { start: entry, size });
        }
        let memory_size = header.map_or(size, |header| header.image_size);
        let device_tree = device_tree_below(ram.end)
            .filter(|(lowest, _)| {
                entry
                    .checked_add(memory_size)
                    .is_some_and(|end| *lowest >= end)
            })
            .map(|(_, address)| address)
            .ok_or(LayoutError::DeviceTree)?;
        Ok(Self {
            entry,
            memory_size,
            device_tree,
            initrd: None,
        })
    }
}

/// The lowest address that the device tree may have, and the aligned one that it gets.
fn device_tree_below(limit: u64) -> Option<(u64, u64)> {
    let lowest = limit.checked_sub(DEVICE_TREE_ROOM)?;
    Some((lowest, lowest.checked_next_multiple_of(DEVICE_TREE_ALIGN)?))
}

/// The initrd ends 1 to 4 bytes below the device tree.
fn initrd_below(device_tree: u64, size: u64) -> Option<u64> {
    Some(
        device_tree
            .checked_sub(size.checked_add(INITRD_ALIGN)?)?
            .next_multiple_of(INITRD_ALIGN),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(text_offset: u64, image_size: u64) -> Option<ImageHeader> {
        Some(ImageHeader {
            text_offset,
            image_size,
        })
    }

    fn ram(mib: u64) -> Ram {
        Ram::new(DEFAULT_RAM_BASE, mib << 20).unwrap()
    }

    #[test]
    fn the_worked_example() {
        let layout =
            Layout::of_kernel(&ram(256), header(0, 1_500_000), 1_234_567, Some(54321)).unwrap();
        let expected = Layout {
            entry: 0x8000_0000,
            memory_size: 1_500_000,
            device_tree: 0x8fe0_0000,
            initrd: Some(0x8fdf_2bcc),
        };
        assert_eq!(layout, expected);
    }

    #[test]
    fn low_memory_ends_at_256_mib() {
        let layout = Layout::of_kernel(&ram(4096), None, 4096, None).unwrap();
        assert_eq!(
            (layout.entry, layout.device_tree),
            (0x8008_0000, 0x8fe0_0000)
        );
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let refused = |ram: &Ram, header, kernel, initrd| {
            Layout::of_kernel(ram, header, kernel, initrd).unwrap_err()
        };
        assert!(matches!(
            refused(&ram(2), None, 64, None),
            LayoutError::DeviceTree
        ));
        assert!(matches!(
            refused(&ram(256), None, 300 << 20, None),
            LayoutError::Kernel { .. }
        ));
        assert!(matches!(
            refused(&ram(256), header(300 << 20, 1), 64, None),
            LayoutError::Kernel { .. }
        ));
        assert!(matches!(
            refused(&ram(256), None, 64, Some(255 << 20)),
            LayoutError::Initrd(_)
        ));
        assert!(matches!(
            refused(&ram(256), None, 64, Some(u64::MAX)),
            LayoutError::Initrd(_)
        ));
    }

    #[test]
    fn ram_is_checked() {
        assert!(matches!(
            Ram::new(1 << 30, 1 << 28),
            Err(LayoutError::RamBaseLow(_))
        ));
        assert!(matches!(
            Ram::new(DEFAULT_RAM_BASE + 1, 1 << 28),
            Err(LayoutError::RamBaseUnaligned(_))
        ));
        assert!(matches!(
            Ram::new(DEFAULT_RAM_BASE, u64::MAX),
            Err(LayoutError::RamTooLarge { .. })
        ));
    }

    #[test]
    fn header_values_are_bounded() {
        let mut bytes = [0; HEADER_SIZE];
        bytes[0x38..0x3c].copy_from_slice(HEADER_MAGIC);
        assert_eq!(ImageHeader::parse(&bytes), Ok(None));
        bytes[0x10] = 1;
        assert_eq!(ImageHeader::parse(&bytes), Ok(header(0, 1)));
        bytes[0x0f] = 1;
        assert!(matches!(
            ImageHeader::parse(&bytes),
            Err(LayoutError::Header {
                field: "text_offset",
                ..
            })
        ));
        bytes[0x38] = 0;
        assert_eq!(ImageHeader::parse(&bytes), Ok(None));
    }

    proptest! {
        #[test]
        fn never_panics(
            pages in any::<u64>(), size in any::<u64>(), bytes in any::<[u8; 32]>(), file in any::<u64>(),
            initrd in any::<Option<u64>>(), address in any::<u64>(),
        ) {
            let base = pages & !(GRANULE_SIZE - 1);
            let mut raw = [0; HEADER_SIZE];
            raw[..32].copy_from_slice(&bytes);
            raw[0x38..0x3c].copy_from_slice(HEADER_MAGIC);
            let header = ImageHeader::parse(&raw).unwrap_or(None);
            if let Ok(ram) = Ram::new(base, size) {
                if let Ok(layout) = Layout::of_kernel(&ram, header, file, initrd) {
                    prop_assert!(layout.device_tree + 0x1_0000 <= ram.end);
                    prop_assert!(layout.entry + file <= layout.initrd.unwrap_or(layout.device_tree));
                }
                if let Ok(layout) = Layout::of_firmware(&ram, header, file, address) {
                    prop_assert!(layout.device_tree + 0x1_0000 <= ram.end);
                }
            }
        }

        #[test]
        fn what_fits_is_in_order(mib in 3u64..1024, file in 64u64..(64 << 20), initrd in 1u64..(64 << 20)) {
            if let Ok(layout) = Layout::of_kernel(&ram(mib), None, file, Some(initrd)) {
                let start = layout.initrd.unwrap();
                prop_assert!(layout.entry + file <= start);
                prop_assert!((1..=4).contains(&(layout.device_tree - start - initrd)));
            }
        }
    }
}
