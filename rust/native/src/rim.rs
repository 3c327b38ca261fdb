//! Bindings of `islet-rim`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use islet_dtb::kvmtool::{IrqChip, Machine, Transport};
use islet_rim::launch::{self, Boot, Launch, Region};
use islet_rim::rmm::{HashAlgorithm, Profile, RealmParams};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::error::{raise, Family};
use crate::rim_report;

/// The arguments of [`measure`], read from the attributes of a Python object.
#[derive(FromPyObject)]
pub struct Arguments {
    hash_algo: String,
    profile: String,
    sve_vl_bits: u32,
    pmu_counters: u32,
    kernel: Option<PathBuf>,
    initrd: Option<PathBuf>,
    firmware: Option<PathBuf>,
    firmware_address: u64,
    ram_base: u64,
    ram_size: u64,
    cpus: u32,
    mpidrs: Option<Vec<u64>>,
    irqchip: String,
    pmu: bool,
    flash_size: Option<u64>,
    virtio: Vec<String>,
    kaslr_seed: u64,
    bootargs: Option<Vec<u8>>,
    clock_frequency: u32,
}

impl Arguments {
    /// The launch that they stand for.
    pub fn launch(self) -> PyResult<Launch> {
        let params = RealmParams {
            algorithm: hash_algorithm(&self.hash_algo)?,
            profile: profile(&self.profile)?,
            sve_vl_bits: self.sve_vl_bits,
            pmu_counters: self.pmu_counters,
        };
        let machine = Machine {
            ram_base: self.ram_base,
            ram_size: self.ram_size,
            cpus: self.cpus,
            mpidrs: self.mpidrs,
            irqchip: irqchip(&self.irqchip)?,
            pmu: self.pmu,
            flash_size: self.flash_size,
            virtio: self
                .virtio
                .iter()
                .map(|name| transport(name))
                .collect::<PyResult<_>>()?,
            kaslr_seed: self.kaslr_seed,
            bootargs: self.bootargs,
            clock_frequency: self.clock_frequency,
        };
        let boot = match (self.kernel, self.firmware) {
            (Some(path), None) => Boot::Kernel {
                path,
                initrd: self.initrd,
            },
            (None, Some(path)) => Boot::Firmware {
                path,
                address: self.firmware_address,
            },
            _ => {
                return Err(PyValueError::new_err(
                    "either a kernel or a firmware is needed",
                ))
            }
        };
        Ok(Launch {
            params,
            machine,
            boot,
        })
    }
}

fn unknown(what: &str, name: &str) -> PyErr {
    PyValueError::new_err(format!("unknown {what} {name:?}"))
}

pub fn hash_algorithm(name: &str) -> PyResult<HashAlgorithm> {
    match name {
        "sha256" => Ok(HashAlgorithm::Sha256),
        "sha512" => Ok(HashAlgorithm::Sha512),
        _ => Err(unknown("hash algorithm", name)),
    }
}

fn profile(name: &str) -> PyResult<Profile> {
    match name {
        "tf-rmm" => Ok(Profile::TfRmm),
        "islet" => Ok(Profile::Islet),
        _ => Err(unknown("profile", name)),
    }
}

fn irqchip(name: &str) -> PyResult<IrqChip> {
    match name {
        "gicv2" => Ok(IrqChip::GicV2),
        "gicv2m" => Ok(IrqChip::GicV2m),
        "gicv3" => Ok(IrqChip::GicV3),
        "gicv3-its" => Ok(IrqChip::GicV3Its),
        _ => Err(unknown("interrupt controller", name)),
    }
}

fn transport(name: &str) -> PyResult<Transport> {
    match name {
        "pci" => Ok(Transport::Pci),
        "mmio" => Ok(Transport::Mmio),
        _ => Err(unknown("virtio transport", name)),
    }
}

/// `(kind, start, size, measured)` of one region.
pub type RegionTuple = (&'static str, u64, u64, bool);

/// Measure a launch with `threads` threads (None: all processors); returns the RIM, the device-tree area and the regions.
#[pyfunction]
#[pyo3(signature = (launch, *, threads=None))]
fn measure(
    py: Python<'_>,
    launch: Arguments,
    threads: Option<NonZeroUsize>,
) -> PyResult<(Py<PyBytes>, Py<PyBytes>, Vec<RegionTuple>)> {
    let launch = launch.launch()?;
    let measurement = py
        .detach(|| launch::measure(&launch, threads, &mut ()))
        .map_err(|error| raise(py, Family::Input, error.code(), &error.to_string()))?;
    let regions = region_tuples(&measurement.regions);
    Ok((
        PyBytes::new(py, &measurement.rim).unbind(),
        PyBytes::new(py, &measurement.device_tree).unbind(),
        regions,
    ))
}

/// The regions as Python sees them.
pub fn region_tuples(regions: &[Region]) -> Vec<RegionTuple> {
    regions
        .iter()
        .map(|region| {
            (
                region.kind.name(),
                region.start,
                region.size,
                region.measured(),
            )
        })
        .collect()
}

/// Fill the submodule `_native.rim`.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(measure, module)?)?;
    rim_report::register(module)
}
