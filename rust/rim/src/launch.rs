//! A kvmtool launch, measured in the order in which kvmtool makes the RMI calls.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use islet_dtb::kvmtool::Machine;

use crate::layout::{ImageHeader, Layout, Ram, HEADER_SIZE};
use crate::observer::Observer;
use crate::payload::Payload;
use crate::recorder::Recorder;
use crate::rmm::{rec_page, RealmParams};
use crate::Error;

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
    /// All of RAM, which gets its state before anything is loaded.
    Ram,
    /// The event log's area; its addresses are measured, its content is not.
    Log,
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
            Self::Ram => "ram",
            Self::Log => "log",
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
        !matches!(
            self.kind,
            RegionKind::Bss | RegionKind::Ram | RegionKind::Log
        )
    }
}

/// The result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measurement {
    /// 32 or 64 bytes.
    pub rim: Vec<u8>,
    /// Where the first vCPU starts.
    pub entry: u64,
    /// The 65536 bytes of the device-tree area.
    pub device_tree: Vec<u8>,
    /// In the order of measurement.
    pub regions: Vec<Region>,
}

/// Measure a launch with `threads` threads (None: one per processor) and tell `observer` of every step.
///
/// # Errors
/// Any [`Error`]: a launch that kvmtool would refuse, or files that cannot be read.
pub fn measure(
    launch: &Launch,
    threads: Option<NonZeroUsize>,
    observer: &mut dyn Observer,
) -> Result<Measurement, Error> {
    let ram = Ram::new(launch.machine.ram_base, launch.machine.ram_size)?;
    let opened = Opened::open(&launch.boot)?;
    let layout = opened.layout(&ram, &launch.boot)?;
    let initrd = layout
        .initrd
        .zip(opened.initrd.as_ref())
        .map(|(start, file)| start..start + file.size());
    let device_tree = launch.machine.device_tree(initrd)?.area();

    let mut recorder = Recorder::create(&launch.params, threads, observer)?;
    let kind = if matches!(launch.boot, Boot::Kernel { .. }) {
        RegionKind::Kernel
    } else {
        RegionKind::Firmware
    };
    let file_end = recorder.file(kind, layout.entry, opened.main)?;
    recorder.zeroed(file_end, layout.entry.saturating_add(layout.memory_size));
    if let (Some(start), Some(file)) = (layout.initrd, opened.initrd) {
        recorder.file(RegionKind::Initrd, start, file)?;
    }
    recorder.area(RegionKind::DeviceTree, layout.device_tree, &device_tree);
    recorder.rec(0, &rec_page(Some((layout.entry, layout.device_tree))));
    for index in 1..launch.machine.vcpus() {
        recorder.rec(index, &rec_page(None));
    }
    let (rim, regions) = recorder.finish();
    Ok(Measurement {
        rim,
        entry: layout.entry,
        device_tree,
        regions,
    })
}

/// The files of a launch.
pub(crate) struct Opened {
    pub(crate) main: Payload,
    pub(crate) initrd: Option<Payload>,
}

impl Opened {
    pub(crate) fn open(boot: &Boot) -> Result<Self, Error> {
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

    pub(crate) fn layout(&self, ram: &Ram, boot: &Boot) -> Result<Layout, Error> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::MAX_HEADER_VALUE;
    use crate::observer::{Operation, Step};
    use crate::rmm::{HashAlgorithm, Profile};
    use islet_dtb::kvmtool::IrqChip;
    use proptest::prelude::*;
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

    fn measured(launch: &Launch) -> Result<Measurement, Error> {
        measure(launch, None, &mut ())
    }

    #[test]
    fn an_observer_sees_every_step() {
        let files = Files::new("observer");
        let mut steps = Vec::new();
        let mut observer = |step: &Step<'_>| {
            let name = match step.operation {
                Operation::Create => "create",
                Operation::Data { region, .. } => region.name(),
                Operation::Ripas { .. } => "ripas",
                Operation::Rec { .. } => "rec",
            };
            steps.push((name, step.rim.to_vec()));
        };
        let measurement = measure(&files.launch(), None, &mut observer).unwrap();
        let names: Vec<_> = steps.iter().map(|(name, _)| *name).collect();
        let mut expected = vec!["create", "kernel", "initrd", "initrd"];
        expected.extend(["dtb"; 16]);
        expected.push("rec");
        assert_eq!(names, expected);
        assert_eq!(steps.last().unwrap().1, measurement.rim);
    }

    #[test]
    fn regions_stand_in_the_order_of_measurement() {
        let files = Files::new("regions");
        let measurement = measured(&files.launch()).unwrap();
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
        let baseline = measured(&files.launch()).unwrap().rim;
        let mut cpus = files.launch();
        cpus.machine.cpus = 2;
        let mut profile = files.launch();
        profile.params.profile = Profile::Islet;
        let mut algorithm = files.launch();
        algorithm.params.algorithm = HashAlgorithm::Sha512;
        for changed in [cpus, profile, algorithm] {
            assert_ne!(measured(&changed).unwrap().rim, baseline);
        }
        std::fs::write(
            files.0.join("initrd"),
            [[8; 4999].as_slice(), &[9]].concat(),
        )
        .unwrap();
        assert_ne!(measured(&files.launch()).unwrap().rim, baseline);
    }

    #[test]
    fn a_firmware_needs_no_header() {
        let files = Files::new("firmware");
        let firmware = |path: &Path, address| {
            let path = path.to_owned();
            measured(&launch_of(Boot::Firmware { path, address }))
        };
        let measurement = firmware(&files.0.join("kernel"), 0).unwrap();
        assert_eq!(measurement.regions[0].kind, RegionKind::Firmware);
        assert_eq!(measurement.regions[0].start, 0x8000_0000);
        let refused = firmware(&files.0.join("kernel"), 0x7000_0000).unwrap_err();
        assert_eq!(refused.code(), "layout");
    }

    proptest! {
        #[test]
        fn any_kernel_is_measured_or_refused(
            magic in any::<bool>(),
            text_offset in prop_oneof![0u64..0x30_0000, any::<u64>()],
            image_size in prop_oneof![0u64..0x30_0000, MAX_HEADER_VALUE + 1..=u64::MAX],
            size in 0usize..300_000,
            initrd in 0usize..300_000,
            megabytes in 1u64..12,
            threads in 2usize..5,
        ) {
            let files = Files::new(&format!("any-{size}-{initrd}-{text_offset}-{image_size}"));
            let mut kernel: Vec<u8> = (0..size.max(64)).map(|index| (index / 7) as u8).collect();
            kernel[0x08..0x10].copy_from_slice(&text_offset.to_le_bytes());
            kernel[0x10..0x18].copy_from_slice(&image_size.to_le_bytes());
            kernel[0x38..0x3c].copy_from_slice(if magic { b"ARM\x64" } else { b"ELF?" });
            kernel.truncate(size);
            std::fs::write(files.0.join("kernel"), &kernel).unwrap();
            std::fs::write(files.0.join("initrd"), vec![3; initrd]).unwrap();
            let mut launch = files.launch();
            launch.machine.ram_size = megabytes << 20;
            let alone = measure(&launch, NonZeroUsize::new(1), &mut ());
            let together = measure(&launch, NonZeroUsize::new(threads), &mut ());
            match (alone, together) {
                (Ok(alone), Ok(together)) => prop_assert_eq!(alone, together),
                (Err(alone), Err(together)) => {
                    prop_assert_eq!(alone.to_string(), together.to_string());
                    prop_assert!(["layout", "file-too-short"].contains(&alone.code()));
                }
                (alone, together) => prop_assert!(false, "{alone:?} but {together:?}"),
            }
        }
    }
}
