//! Flattened device trees, byte for byte as the VMMs write them.
//!
//! [`fdt`] writes a blob exactly as libfdt's sequential-write interface does (followed by
//! `fdt_open_into` and `fdt_pack`), including the string table that grows downwards and the stale
//! bytes that packing leaves behind. [`kvmtool`] is the tree of a kvmtool realm as a pure function
//! of a [`kvmtool::Machine`]. [`read`] reads any blob back for reports. Nothing here touches files.
//!
//! | threat | answer | test |
//! | --- | --- | --- |
//! | a tree that does not fit its area is cut silently | [`Error::TooLarge`] | `fdt::tests::a_tree_that_does_not_fit_is_refused` |
//! | a VMM's blob has offsets that lead outside it | every access checked, [`read::MAX_DEPTH`] | `read::tests::damage_never_panics` |
//! | addresses wrap for absurd vCPU counts | [`Error::RedistributorSpace`] | `kvmtool::tests::absurd_vcpu_counts_are_refused` |

#![forbid(unsafe_code)]

pub mod fdt;
pub mod kvmtool;
pub mod read;

/// Why there is no device tree for a machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The blob and its working space exceed the area that the VMM reserves.
    #[error("the device tree needs {needed} bytes, but its area has {limit}")]
    TooLarge {
        /// Bytes that the VMM would need while it builds the tree.
        needed: usize,
        /// Size of the area.
        limit: usize,
    },
    /// The GICv3 redistributors (and the ITS) would start below address 0.
    #[error("{cpus} vCPUs: their interrupt controller does not fit below the GIC distributor")]
    RedistributorSpace {
        /// The vCPU count as given.
        cpus: u32,
    },
    /// There must be one MPIDR per vCPU.
    #[error("{given} MPIDRs for {cpus} vCPUs")]
    MpidrCount {
        /// MPIDRs given.
        given: usize,
        /// vCPUs of the machine.
        cpus: u32,
    },
    /// More virtio devices than interrupt lines allow.
    #[error("{given} virtio devices; at most {limit} are supported")]
    TooManyDevices {
        /// Devices asked for.
        given: usize,
        /// The limit.
        limit: usize,
    },
}
