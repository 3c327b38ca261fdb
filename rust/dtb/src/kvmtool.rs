//! The device tree of a kvmtool arm64 realm.
//!
//! Source: kvmtool, branch `kvmtool-rim-measurer/eac5` of islet-project/3rd-kvmtool: `arm/fdt.c`,
//! `arm/gic.c`, `arm/timer.c`, `arm/pci.c`, `hw/`. Order, names and even the odd choices (no unit
//! address on `memory`, redistributors for unclamped vCPU counts) are measured, hence kept.

use std::ops::Range;

use crate::fdt::{Blob, Writer};
use crate::Error;

/// Most vCPUs that a machine gets, whatever was asked for.
pub const MAX_CPUS: u32 = 16;
/// Most virtio devices; further interrupt lines would wrap around in kvmtool.
pub const MAX_VIRTIO_DEVICES: usize = 150;

const PHANDLE_GIC: u32 = 1;
const PHANDLE_MSI: u32 = 2;

const IRQ_SPI: u32 = 0;
const IRQ_PPI: u32 = 1;
const IRQ_EDGE_RISING: u32 = 1;
const IRQ_LEVEL_HIGH: u32 = 4;
const IRQ_LEVEL_LOW: u32 = 8;
/// Interrupt line of SPI 0.
const FIRST_LINE: u32 = 32;

const UART_COUNT: u32 = 4;
const UART_BASE: u64 = 0x100_0000;
const UART_CLOCK: u32 = 1_843_200;
const RTC_BASE: u64 = 0x101_0000;
const FLASH_BASE: u64 = 0x200_0000;
const FLASH_MAX: u64 = 16 << 20;
const VIRTIO_MMIO_BASE: u64 = 0x300_0000;
const VIRTIO_MMIO_SIZE: u64 = 0x200;

const GIC_DIST: (u64, u64) = (0x3fff_0000, 0x1_0000);
const GIC_CPU_INTERFACE: (u64, u64) = (0x3ffd_0000, 0x2_0000);
const GIC_V2M_FRAME: (u64, u64) = (0x3ffc_f000, 0x1000);
const GIC_REDISTRIBUTOR_SIZE: u64 = 0x2_0000;
const GIC_ITS_SIZE: u64 = 0x2_0000;

/// Affinity levels 0 to 3 of an MPIDR.
const MPIDR_AFFINITY: u64 = 0x00ff_00ff_ffff;

/// The interrupt controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IrqChip {
    /// GICv2.
    GicV2,
    /// GICv2 with an MSI frame.
    GicV2m,
    /// GICv3.
    GicV3,
    /// GICv3 with an interrupt translation service.
    GicV3Its,
}

impl IrqChip {
    fn is_v3(self) -> bool {
        matches!(self, Self::GicV3 | Self::GicV3Its)
    }

    fn has_msi(self) -> bool {
        matches!(self, Self::GicV2m | Self::GicV3Its)
    }
}

/// How a virtio device is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A function on bus 0.
    Pci,
    /// A memory-mapped register window.
    Mmio,
}

/// Everything that the tree shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// First address of RAM.
    pub ram_base: u64,
    /// Bytes of RAM.
    pub ram_size: u64,
    /// vCPUs as asked for. Only [`Machine::vcpus`] of them exist, but the GICv3 is sized for all.
    pub cpus: u32,
    /// One MPIDR per existing vCPU; their indices when None.
    pub mpidrs: Option<Vec<u64>>,
    /// The interrupt controller.
    pub irqchip: IrqChip,
    /// Whether there is a PMU node.
    pub pmu: bool,
    /// File size of the flash image, in bytes.
    pub flash_size: Option<u64>,
    /// Transports of the virtio devices in creation order.
    pub virtio: Vec<Transport>,
    /// Seed of the kernel's address space layout randomization.
    pub kaslr_seed: u64,
    /// Kernel command line without NUL.
    pub bootargs: Option<Vec<u8>>,
    /// Frequency of the timer that overrides the firmware's; 0 leaves it out.
    pub clock_frequency: u32,
}

impl Machine {
    /// How many vCPUs exist.
    #[must_use]
    pub fn vcpus(&self) -> u32 {
        self.cpus.min(MAX_CPUS)
    }

    /// Write the tree.
    ///
    /// # Errors
    /// Any [`Error`]: a machine that cannot be described.
    pub fn device_tree(&self, initrd: Option<Range<u64>>) -> Result<Blob, Error> {
        self.check()?;
        let mut writer = Writer::new();
        let slots = self.slots();
        writer.node("", |w| {
            w.cells("interrupt-parent", &[PHANDLE_GIC]);
            w.string("compatible", "linux,dummy-virt");
            w.cells("#address-cells", &[2]);
            w.cells("#size-cells", &[2]);
            self.chosen(w, initrd);
            w.node("memory", |w| {
                w.string("device_type", "memory");
                w.u64s("reg", &[self.ram_base, self.ram_size]);
            });
            self.cpu_nodes(w);
            self.interrupt_controller(w);
            self.timer(w);
            self.pmu_node(w);
            self.platform_devices(w);
            virtio_mmio_devices(w, &slots);
            self.pci(w, &slots);
            psci(w);
            w.node("aliases", |w| {
                w.string("serial0", &format!("/U6_16550A@{UART_BASE:x}"))
            });
        });
        writer.finish()
    }

    fn check(&self) -> Result<(), Error> {
        if let Some(mpidrs) = &self.mpidrs {
            if mpidrs.len() != self.vcpus() as usize {
                return Err(Error::MpidrCount {
                    given: mpidrs.len(),
                    cpus: self.vcpus(),
                });
            }
        }
        if self.virtio.len() > MAX_VIRTIO_DEVICES {
            return Err(Error::TooManyDevices {
                given: self.virtio.len(),
                limit: MAX_VIRTIO_DEVICES,
            });
        }
        let its = if self.irqchip == IrqChip::GicV3Its {
            GIC_ITS_SIZE
        } else {
            0
        };
        if self.irqchip.is_v3() && self.redistributors_size() + its > GIC_DIST.0 {
            return Err(Error::RedistributorSpace { cpus: self.cpus });
        }
        Ok(())
    }

    fn redistributors_size(&self) -> u64 {
        GIC_REDISTRIBUTOR_SIZE * u64::from(self.cpus)
    }

    /// Give every virtio device its interrupt line and its place.
    fn slots(&self) -> Vec<Slot> {
        let mut next = [0u64; 2];
        self.virtio
            .iter()
            .zip(FIRST_LINE + UART_COUNT..)
            .map(|(transport, line)| {
                let counter = &mut next[usize::from(*transport == Transport::Mmio)];
                let number = *counter;
                *counter += 1;
                Slot {
                    transport: *transport,
                    number,
                    line,
                }
            })
            .collect()
    }

    fn chosen(&self, w: &mut Writer, initrd: Option<Range<u64>>) {
        w.node("chosen", |w| {
            if let Some(bootargs) = &self.bootargs {
                w.strings("bootargs", &[bootargs]);
            }
            w.u64s("kaslr-seed", &[self.kaslr_seed]);
            w.string("stdout-path", "serial0");
            if let Some(initrd) = initrd {
                w.u64s("linux,initrd-start", &[initrd.start]);
                w.u64s("linux,initrd-end", &[initrd.end]);
            }
        });
    }

    fn cpu_nodes(&self, w: &mut Writer) {
        w.node("cpus", |w| {
            w.cells("#address-cells", &[1]);
            w.cells("#size-cells", &[0]);
            for index in 0..self.vcpus() {
                let mpidr = self
                    .mpidrs
                    .as_ref()
                    .map_or(u64::from(index), |all| all[index as usize]);
                let affinity = mpidr & MPIDR_AFFINITY;
                w.node(&format!("cpu@{affinity:x}"), |w| {
                    w.string("device_type", "cpu");
                    w.string("compatible", "arm,arm-v8");
                    if self.vcpus() > 1 {
                        w.string("enable-method", "psci");
                    }
                    w.cells("reg", &[affinity as u32]);
                });
            }
        });
    }

    fn interrupt_controller(&self, w: &mut Writer) {
        let redistributors = GIC_DIST.0.wrapping_sub(self.redistributors_size());
        w.node("intc", |w| {
            w.string(
                "compatible",
                if self.irqchip.is_v3() {
                    "arm,gic-v3"
                } else {
                    "arm,cortex-a15-gic"
                },
            );
            w.cells("#interrupt-cells", &[3]);
            w.empty("interrupt-controller");
            let second = if self.irqchip.is_v3() {
                (redistributors, self.redistributors_size())
            } else {
                GIC_CPU_INTERFACE
            };
            w.u64s("reg", &[GIC_DIST.0, GIC_DIST.1, second.0, second.1]);
            w.cells("phandle", &[PHANDLE_GIC]);
            w.cells("#address-cells", &[2]);
            w.cells("#size-cells", &[2]);
            let (compatible, frame) = match self.irqchip {
                IrqChip::GicV2 | IrqChip::GicV3 => return,
                IrqChip::GicV2m => ("arm,gic-v2m-frame", GIC_V2M_FRAME),
                IrqChip::GicV3Its => (
                    "arm,gic-v3-its",
                    (redistributors - GIC_ITS_SIZE, GIC_ITS_SIZE),
                ),
            };
            w.empty("ranges");
            w.node("msic", |w| {
                w.string("compatible", compatible);
                w.empty("msi-controller");
                w.cells("phandle", &[PHANDLE_MSI]);
                w.u64s("reg", &[frame.0, frame.1]);
            });
        });
    }

    /// The PPI flags' CPU mask, which only a GICv2 has.
    fn ppi_mask(&self) -> u32 {
        if self.irqchip.is_v3() {
            0
        } else {
            ((1u32 << self.vcpus().min(8)) - 1) << 8
        }
    }

    fn timer(&self, w: &mut Writer) {
        let flags = self.ppi_mask() | IRQ_LEVEL_LOW;
        w.node("timer", |w| {
            w.strings("compatible", &[b"arm,armv8-timer", b"arm,armv7-timer"]);
            let interrupts: Vec<u32> = [13, 14, 11, 10]
                .into_iter()
                .flat_map(|ppi| [IRQ_PPI, ppi, flags])
                .collect();
            w.cells("interrupts", &interrupts);
            w.empty("always-on");
            if self.clock_frequency != 0 {
                w.cells("clock-frequency", &[self.clock_frequency]);
            }
        });
    }

    fn pmu_node(&self, w: &mut Writer) {
        if self.pmu {
            w.node("pmu", |w| {
                w.string("compatible", "arm,armv8-pmuv3");
                w.cells(
                    "interrupts",
                    &[IRQ_PPI, 7, self.ppi_mask() | IRQ_LEVEL_HIGH],
                );
            });
        }
    }

    /// Flash, UARTs and clock: what every machine has before its virtio devices.
    fn platform_devices(&self, w: &mut Writer) {
        if let Some(size) = self.flash_size {
            w.node("flash", |w| {
                w.cells("bank-width", &[4]);
                w.cells("#address-cells", &[1]);
                w.cells("#size-cells", &[1]);
                w.string("compatible", "cfi-flash");
                w.string("label", "System-firmware");
                w.u64s("reg", &[FLASH_BASE, flash_window(size)]);
            });
        }
        for index in 0..UART_COUNT {
            let address = UART_BASE + 0x1000 * u64::from(index);
            w.node(&format!("U6_16550A@{address:x}"), |w| {
                w.string("compatible", "ns16550a");
                w.u64s("reg", &[address, 8]);
                w.cells("interrupts", &[IRQ_SPI, index, IRQ_LEVEL_HIGH]);
                w.cells("clock-frequency", &[UART_CLOCK]);
            });
        }
        w.node("rtc", |w| {
            w.string("compatible", "motorola,mc146818");
            w.u64s("reg", &[RTC_BASE, 2]);
        });
    }

    fn pci(&self, w: &mut Writer, slots: &[Slot]) {
        let map: Vec<u32> = slots
            .iter()
            .filter(|slot| slot.transport == Transport::Pci)
            .flat_map(|slot| {
                let device = (slot.number as u32 & 31) << 11;
                [
                    device,
                    0,
                    0,
                    1,
                    PHANDLE_GIC,
                    0,
                    0,
                    IRQ_SPI,
                    slot.line - FIRST_LINE,
                    IRQ_LEVEL_HIGH,
                ]
            })
            .collect();
        w.node("pci", |w| {
            w.string("device_type", "pci");
            w.cells("#address-cells", &[3]);
            w.cells("#size-cells", &[2]);
            w.cells("#interrupt-cells", &[1]);
            w.string("compatible", "pci-host-ecam-generic");
            w.empty("dma-coherent");
            w.cells("bus-range", &[0, 0]);
            w.u64s("reg", &[0x4000_0000, 0x1000_0000]);
            let io = [0x0100_0000, 0, 0, 0, 0, 0, 0x1_0000];
            let memory = [0x0200_0000, 0, 0x5000_0000, 0, 0x5000_0000, 0, 0x3000_0000];
            w.cells("ranges", &[io, memory].concat());
            if self.irqchip.has_msi() {
                w.cells("msi-parent", &[PHANDLE_MSI]);
            }
            w.cells("interrupt-map", &map);
            if !map.is_empty() {
                w.cells("interrupt-map-mask", &[0xf800, 0, 0, 7]);
            }
        });
    }
}

/// A virtio device's place: its number on its transport and its interrupt line.
struct Slot {
    transport: Transport,
    number: u64,
    line: u32,
}

/// The flash window: the largest power of two within the file, at most 16 MiB, at least one byte.
fn flash_window(size: u64) -> u64 {
    1 << size.clamp(1, FLASH_MAX).ilog2()
}

fn virtio_mmio_devices(w: &mut Writer, slots: &[Slot]) {
    for slot in slots
        .iter()
        .filter(|slot| slot.transport == Transport::Mmio)
    {
        let address = VIRTIO_MMIO_BASE + VIRTIO_MMIO_SIZE * slot.number;
        w.node(&format!("virtio@{address:x}"), |w| {
            w.string("compatible", "virtio,mmio");
            w.u64s("reg", &[address, VIRTIO_MMIO_SIZE]);
            w.empty("dma-coherent");
            w.cells(
                "interrupts",
                &[IRQ_SPI, slot.line - FIRST_LINE, IRQ_EDGE_RISING],
            );
        });
    }
}

fn psci(w: &mut Writer) {
    w.node("psci", |w| {
        w.strings("compatible", &[b"arm,psci-0.2", b"arm,psci"]);
        w.string("method", "smc");
        w.cells("cpu_suspend", &[0xc400_0001]);
        w.cells("cpu_off", &[0x8400_0002]);
        w.cells("cpu_on", &[0xc400_0003]);
        w.cells("migrate", &[0xc400_0005]);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine {
            ram_base: 0x8000_0000,
            ram_size: 256 << 20,
            cpus: 1,
            mpidrs: None,
            irqchip: IrqChip::GicV3,
            pmu: false,
            flash_size: None,
            virtio: vec![Transport::Pci],
            kaslr_seed: 0,
            bootargs: Some(b" console=ttyS0 root=/dev/vda rw ".to_vec()),
            clock_frequency: 0,
        }
    }

    fn contains(blob: &Blob, needle: &[u8]) -> bool {
        blob.bytes()
            .windows(needle.len())
            .any(|window| window == needle)
    }

    #[test]
    fn the_baseline_has_its_known_size() {
        let blob = machine()
            .device_tree(Some(0x8fdf_2bcc..0x8fdf_fffd))
            .unwrap();
        assert_eq!(blob.bytes().len(), 2159);
    }

    #[test]
    fn method_shares_the_tail_of_enable_method_only_with_several_vcpus() {
        let one = machine().device_tree(None).unwrap();
        assert!(contains(&one, b"\0method\0"));
        let two = Machine {
            cpus: 2,
            ..machine()
        }
        .device_tree(None)
        .unwrap();
        assert!(contains(&two, b"enable-method\0") && !contains(&two, b"\0method\0"));
    }

    #[test]
    fn absurd_vcpu_counts_are_refused() {
        for (cpus, irqchip) in [
            (u32::MAX, IrqChip::GicV3),
            (8192, IrqChip::GicV3),
            (8191, IrqChip::GicV3Its),
        ] {
            let refused = Machine {
                cpus,
                irqchip,
                ..machine()
            }
            .device_tree(None);
            assert_eq!(refused.unwrap_err(), Error::RedistributorSpace { cpus });
        }
        assert!(Machine {
            cpus: 8191,
            ..machine()
        }
        .device_tree(None)
        .is_ok());
        assert!(Machine {
            cpus: u32::MAX,
            irqchip: IrqChip::GicV2,
            ..machine()
        }
        .device_tree(None)
        .is_ok());
    }

    #[test]
    fn counts_must_fit() {
        let refused = Machine {
            mpidrs: Some(vec![0, 1]),
            ..machine()
        }
        .device_tree(None);
        assert_eq!(
            refused.unwrap_err(),
            Error::MpidrCount { given: 2, cpus: 1 }
        );
        let refused = Machine {
            virtio: vec![Transport::Mmio; 151],
            ..machine()
        }
        .device_tree(None);
        assert_eq!(
            refused.unwrap_err(),
            Error::TooManyDevices {
                given: 151,
                limit: 150
            }
        );
        assert!(Machine {
            virtio: vec![Transport::Mmio; 150],
            ..machine()
        }
        .device_tree(None)
        .is_ok());
    }

    #[test]
    fn the_flash_window_is_a_power_of_two() {
        let windows = [0, 1, 2, 3, 100_000, 16 << 20, u64::MAX].map(flash_window);
        assert_eq!(windows, [1, 1, 2, 2, 65536, 16 << 20, 16 << 20]);
    }
}
