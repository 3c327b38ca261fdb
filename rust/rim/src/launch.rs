//! A kvmtool launch, measured in the order in which kvmtool makes the RMI calls.

use std::path::PathBuf;

use islet_dtb::kvmtool::Machine;

use crate::layout::{ImageHeader, Layout, Ram, HEADER_SIZE};
use crate::payload::{GuestMemory, Payload};
use crate::rmm::{RealmParams, Rim};
use crate::{Error, GRANULE_SIZE};

const PAGE: usize = GRANULE_SIZE as usize;
/// Memory is read in pieces of this size.
const CHUNK: usize = 64 * PAGE;

/// What the first vCPU starts in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Boot {
    /// A kernel, with or without an arm64 Image header.
    Kernel {
        /// The file.
        path: PathBuf,
        /// The initial file system.
        initrd: Option<PathBuf>,
    },
    /// A firmware image.
    Firmware {
        /// The file.
        path: PathBuf,
        /// Load address; 0 means the start of RAM.
        address: u64,
    },
}

/// Everything that a RIM depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// The realm parameters.
    pub params: RealmParams,
    /// The machine of the device tree.
    pub machine: Machine,
    /// The files.
    pub boot: Boot,
}

/// What a region of guest memory holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegionKind {
    /// The kernel file.
    Kernel,
    /// The firmware file.
    Firmware,
    /// Zeroed memory of kernel or firmware behind the file; its addresses are measured, its content is not.
    Bss,
    /// The initial file system.
    Initrd,
    /// The device-tree area.
    DeviceTree,
}

impl RegionKind {
    /// Its name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Firmware => "firmware",
            Self::Bss => "bss",
            Self::Initrd => "initrd",
            Self::DeviceTree => "dtb",
        }
    }
}

/// A page-aligned piece of guest memory that went into the RIM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// What it holds.
    pub kind: RegionKind,
    /// First address.
    pub start: u64,
    /// Bytes.
    pub size: u64,
}

impl Region {
    /// Whether its content is measured, or only where it is.
    #[must_use]
    pub fn measured(&self) -> bool {
        self.kind != RegionKind::Bss
    }
}

/// The result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measurement {
    /// 32 or 64 bytes.
    pub rim: Vec<u8>,
    /// The 65536 bytes of the device-tree area.
    pub device_tree: Vec<u8>,
    /// In the order of measurement.
    pub regions: Vec<Region>,
}

/// Measure a launch.
///
/// # Errors
/// Any [`Error`]: a launch that kvmtool would refuse, or files that cannot be read.
pub fn measure(launch: &Launch) -> Result<Measurement, Error> {
    let ram = Ram::new(launch.machine.ram_base, launch.machine.ram_size)?;
    let opened = Opened::open(&launch.boot)?;
    let layout = opened.layout(&ram, &launch.boot)?;
    let initrd = layout
        .initrd
        .zip(opened.initrd.as_ref())
        .map(|(start, file)| start..start + file.size());
    let device_tree = launch.machine.device_tree(initrd)?.area();

    let mut steps = Steps {
        rim: Rim::create(&launch.params)?,
        memory: GuestMemory::default(),
        regions: Vec::new(),
    };
    let kind = if matches!(launch.boot, Boot::Kernel { .. }) {
        RegionKind::Kernel
    } else {
        RegionKind::Firmware
    };
    let file_end = steps.file(kind, layout.entry, opened.main)?;
    steps.zeroed(file_end, layout.entry.saturating_add(layout.memory_size));
    if let (Some(start), Some(file)) = (layout.initrd, opened.initrd) {
        steps.file(RegionKind::Initrd, start, file)?;
    }
    steps.area(layout.device_tree, &device_tree);
    steps
        .rim
        .extend_rec(Some((layout.entry, layout.device_tree)));
    for _ in 1..launch.machine.vcpus() {
        steps.rim.extend_rec(None);
    }
    Ok(Measurement {
        rim: steps.rim.value().to_vec(),
        device_tree,
        regions: steps.regions,
    })
}

/// The files of a launch.
struct Opened {
    main: Payload,
    initrd: Option<Payload>,
}

impl Opened {
    fn open(boot: &Boot) -> Result<Self, Error> {
        match boot {
            Boot::Kernel { path, initrd } => Ok(Self {
                main: Payload::open("kernel", path, HEADER_SIZE as u64)?,
                initrd: initrd
                    .as_ref()
                    .map(|path| Payload::open("initrd", path, 1))
                    .transpose()?,
            }),
            Boot::Firmware { path, .. } => Ok(Self {
                main: Payload::open("firmware", path, 1)?,
                initrd: None,
            }),
        }
    }

    fn layout(&self, ram: &Ram, boot: &Boot) -> Result<Layout, Error> {
        let header = ImageHeader::parse(&self.main.head()?)?;
        let layout = match boot {
            Boot::Kernel { .. } => Layout::of_kernel(
                ram,
                header,
                self.main.size(),
                self.initrd.as_ref().map(Payload::size),
            ),
            Boot::Firmware { address, .. } => {
                Layout::of_firmware(ram, header, self.main.size(), *address)
            }
        };
        Ok(layout?)
    }
}

/// The measurement in progress.
struct Steps {
    rim: Rim,
    memory: GuestMemory,
    regions: Vec<Region>,
}

impl Steps {
    /// Load a file and measure the pages that it touches, with all that is in memory by then.
    /// Returns the end of the last page.
    fn file(&mut self, kind: RegionKind, address: u64, payload: Payload) -> Result<u64, Error> {
        let start = address - address % GRANULE_SIZE;
        let end = (address + payload.size()).next_multiple_of(GRANULE_SIZE);
        self.memory.load(address, payload);
        let mut buffer = vec![0; CHUNK];
        let mut position = start;
        while position < end {
            let piece = &mut buffer
                [..usize::try_from(end - position).map_or(CHUNK, |left| left.min(CHUNK))];
            self.memory.read(position, piece)?;
            self.granules(position, piece);
            position += piece.len() as u64;
        }
        self.regions.push(Region {
            kind,
            start,
            size: end - start,
        });
        Ok(end)
    }

    /// Give the pages up to `end` their state, one by one.
    fn zeroed(&mut self, start: u64, end: u64) {
        let Some(end) = end
            .checked_next_multiple_of(GRANULE_SIZE)
            .filter(|end| *end > start)
        else {
            return;
        };
        for base in (start..end).step_by(PAGE) {
            self.rim.extend_ripas(base, base + GRANULE_SIZE);
        }
        self.regions.push(Region {
            kind: RegionKind::Bss,
            start,
            size: end - start,
        });
    }

    fn area(&mut self, start: u64, content: &[u8]) {
        self.granules(start, content);
        self.regions.push(Region {
            kind: RegionKind::DeviceTree,
            start,
            size: content.len() as u64,
        });
    }

    /// `content` is a multiple of a page, and so is `start`.
    fn granules(&mut self, start: u64, content: &[u8]) {
        for (granule, ipa) in content.chunks_exact(PAGE).zip((start..).step_by(PAGE)) {
            self.rim.extend_data(ipa, granule);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rmm::{HashAlgorithm, Profile};
    use islet_dtb::kvmtool::IrqChip;
    use std::path::Path;

    /// A directory with a kernel (100 bytes, no header) and an initrd, gone at the end of the test.
    struct Files(PathBuf);

    impl Files {
        fn new(name: &str) -> Self {
            let directory =
                std::env::temp_dir().join(format!("islet-rim-{}-{name}", std::process::id()));
            std::fs::create_dir(&directory).unwrap();
            std::fs::write(directory.join("kernel"), [7; 100]).unwrap();
            std::fs::write(directory.join("initrd"), [8; 5000]).unwrap();
            Self(directory)
        }

        fn launch(&self) -> Launch {
            let boot = Boot::Kernel {
                path: self.0.join("kernel"),
                initrd: Some(self.0.join("initrd")),
            };
            launch_of(boot)
        }
    }

    impl Drop for Files {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn launch_of(boot: Boot) -> Launch {
        Launch {
            params: RealmParams {
                algorithm: HashAlgorithm::Sha256,
                profile: Profile::TfRmm,
                sve_vl_bits: 0,
                pmu_counters: 0,
            },
            machine: Machine {
                ram_base: 0x8000_0000,
                ram_size: 256 << 20,
                cpus: 1,
                mpidrs: None,
                irqchip: IrqChip::GicV3,
                pmu: false,
                flash_size: None,
                virtio: Vec::new(),
                kaslr_seed: 0,
                bootargs: None,
                clock_frequency: 0,
            },
            boot,
        }
    }

    #[test]
    fn regions_stand_in_the_order_of_measurement() {
        let files = Files::new("regions");
        let measurement = measure(&files.launch()).unwrap();
        let shown: Vec<_> = measurement
            .regions
            .iter()
            .map(|region| (region.kind.name(), region.start, region.size))
            .collect();
        assert_eq!(
            shown,
            [
                ("kernel", 0x8008_0000, 4096),
                ("initrd", 0x8fdf_e000, 8192),
                ("dtb", 0x8fe0_0000, 65536)
            ]
        );
    }

    #[test]
    fn every_input_counts() {
        let files = Files::new("inputs");
        let baseline = measure(&files.launch()).unwrap().rim;
        let mut cpus = files.launch();
        cpus.machine.cpus = 2;
        let mut profile = files.launch();
        profile.params.profile = Profile::Islet;
        let mut algorithm = files.launch();
        algorithm.params.algorithm = HashAlgorithm::Sha512;
        for changed in [cpus, profile, algorithm] {
            assert_ne!(measure(&changed).unwrap().rim, baseline);
        }
        std::fs::write(
            files.0.join("initrd"),
            [[8; 4999].as_slice(), &[9]].concat(),
        )
        .unwrap();
        assert_ne!(measure(&files.launch()).unwrap().rim, baseline);
    }

    #[test]
    fn a_firmware_needs_no_header() {
        let files = Files::new("firmware");
        let firmware = |path: &Path, address| {
            let path = path.to_owned();
            measure(&launch_of(Boot::Firmware { path, address }))
        };
        let measurement = firmware(&files.0.join("kernel"), 0).unwrap();
        assert_eq!(measurement.regions[0].kind, RegionKind::Firmware);
        assert_eq!(measurement.regions[0].start, 0x8000_0000);
        let refused = firmware(&files.0.join("kernel"), 0x7000_0000).unwrap_err();
        assert_eq!(refused.code(), "layout");
    }
}
