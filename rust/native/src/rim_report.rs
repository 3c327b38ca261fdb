//! Bindings of what `islet-rim` tells beyond the RIM: groups of steps, traces, variants, device trees.

use std::fs::File;
use std::io::{BufWriter, Error as IoError};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use islet_dtb::read;
use islet_rim::dialect::{self, Blob, Content};
use islet_rim::launch::{self, RegionKind};
use islet_rim::probe::Probe as Inner;
use islet_rim::trace::{Group, Groups, JsonLines};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::error::{raise, Family};
use crate::rim::{hash_algorithm, region_tuples, Arguments, RegionTuple};

type Bytes = Py<PyBytes>;
/// `(kind, what, start, top, steps, measured, digest, rim, granules)` of one group of steps.
type GroupTuple = (
    &'static str,
    Option<&'static str>,
    u64,
    u64,
    u64,
    bool,
    Bytes,
    Bytes,
    Bytes,
);

/// The observer of a report, and the trace file that it writes.
struct Report {
    observer: (Groups, Option<JsonLines<BufWriter<File>>>),
    trace: Option<PathBuf>,
}

impl Report {
    fn new(py: Python<'_>, trace: Option<PathBuf>) -> PyResult<Self> {
        let lines = match &trace {
            Some(path) => {
                let file = File::create(path).map_err(|error| trace_failed(py, path, &error))?;
                Some(JsonLines::new(BufWriter::new(file)))
            }
            None => None,
        };
        Ok(Self {
            observer: (Groups::default(), lines),
            trace,
        })
    }

    fn finish(self, py: Python<'_>) -> PyResult<Vec<GroupTuple>> {
        let (groups, lines) = self.observer;
        if let (Some(lines), Some(path)) = (lines, &self.trace) {
            lines
                .finish()
                .map_err(|error| trace_failed(py, path, &error))?;
        }
        Ok(groups
            .finish()
            .iter()
            .map(|group| tuple(py, group))
            .collect())
    }
}

fn trace_failed(py: Python<'_>, path: &Path, error: &IoError) -> PyErr {
    // The system's words without the number that `io::Error` appends.
    let text = error.to_string();
    let words = text.split(" (os error").next().unwrap_or_default();
    let message = format!("trace {}: {words}", path.display());
    raise(py, Family::Input, "io", &message)
}

fn bytes(py: Python<'_>, content: &[u8]) -> Bytes {
    PyBytes::new(py, content).unbind()
}

fn tuple(py: Python<'_>, group: &Group) -> GroupTuple {
    (
        group.kind.name(),
        group.region.map(RegionKind::name),
        group.start,
        group.top,
        group.steps,
        group.measured,
        bytes(py, &group.digest),
        bytes(py, &group.rim),
        bytes(py, &group.granules),
    )
}

fn refused(py: Python<'_>, error: &islet_rim::Error) -> PyErr {
    raise(py, Family::Input, error.code(), &error.to_string())
}

/// RIM, device-tree area, entry point, regions, page of realm parameters, groups.
type Explained = (Bytes, Bytes, u64, Vec<RegionTuple>, Bytes, Vec<GroupTuple>);

/// Measure a kvmtool launch and report the groups of its steps; `trace` names a file for every step.
#[pyfunction]
#[pyo3(signature = (launch, *, threads=None, trace=None))]
fn explain(
    py: Python<'_>,
    launch: Arguments,
    threads: Option<NonZeroUsize>,
    trace: Option<PathBuf>,
) -> PyResult<Explained> {
    let launch = launch.launch()?;
    let page = launch.params.page().map_err(|error| refused(py, &error))?;
    let mut report = Report::new(py, trace)?;
    let measurement = py
        .detach(|| launch::measure(&launch, threads, &mut report.observer))
        .map_err(|error| refused(py, &error))?;
    Ok((
        bytes(py, &measurement.rim),
        bytes(py, &measurement.device_tree),
        measurement.entry,
        region_tuples(&measurement.regions),
        bytes(py, &page),
        report.finish(py)?,
    ))
}

/// The arguments of [`measure_sequence`], read from the attributes of a Python object.
#[derive(FromPyObject)]
struct Sequence {
    hash_algo: String,
    ipa_bits: u8,
    lpa2: bool,
    sve_vl_bits: u16,
    num_bps: u8,
    num_wps: u8,
    pmu_counters: Option<u8>,
    ram: Vec<(u64, u64)>,
    /// What, address, file or None, bytes when there is no file.
    blobs: Vec<(String, u64, Option<PathBuf>, Vec<u8>)>,
    start: Option<(u64, u64)>,
    log: Option<(u64, u64)>,
}

impl Sequence {
    fn launch(self) -> PyResult<dialect::Launch> {
        if !dialect::IPA_BITS.contains(&self.ipa_bits) {
            return Err(PyValueError::new_err("ipa_bits out of range"));
        }
        let parameters = dialect::Parameters {
            algorithm: hash_algorithm(&self.hash_algo)?,
            ipa_bits: self.ipa_bits,
            lpa2: self.lpa2,
            sve_vl_bits: self.sve_vl_bits,
            breakpoints: self.num_bps,
            watchpoints: self.num_wps,
            pmu_counters: self.pmu_counters,
        };
        let blob = |(kind, start, path, content): (String, u64, Option<PathBuf>, Vec<u8>)| {
            Ok(Blob {
                kind: region_kind(&kind)?,
                start,
                content: path.map_or(Content::Bytes(content), Content::File),
            })
        };
        for (start, size) in self.ram.iter().chain(&self.log) {
            let aligned =
                start % islet_rim::GRANULE_SIZE == 0 && size % islet_rim::GRANULE_SIZE == 0;
            if !aligned || start.checked_add(*size).is_none() {
                return Err(PyValueError::new_err("memory must consist of granules"));
            }
        }
        Ok(dialect::Launch {
            parameters,
            ram: self.ram,
            blobs: self.blobs.into_iter().map(blob).collect::<PyResult<_>>()?,
            start: self.start,
            log: self.log,
        })
    }
}

fn region_kind(name: &str) -> PyResult<RegionKind> {
    [
        RegionKind::Kernel,
        RegionKind::Firmware,
        RegionKind::Initrd,
        RegionKind::DeviceTree,
    ]
    .into_iter()
    .find(|kind| kind.name() == name)
    .ok_or_else(|| PyValueError::new_err(format!("unknown kind of blob {name:?}")))
}

/// RIM, regions, page of realm parameters, groups.
type Measured = (Bytes, Vec<RegionTuple>, Bytes, Vec<GroupTuple>);

/// Measure a launch of the second dialect; the last two of the result are for reports.
#[pyfunction]
#[pyo3(signature = (launch, *, threads=None, trace=None))]
fn measure_sequence(
    py: Python<'_>,
    launch: Sequence,
    threads: Option<NonZeroUsize>,
    trace: Option<PathBuf>,
) -> PyResult<Measured> {
    let launch = launch.launch()?;
    let page = launch.parameters.page();
    let mut report = Report::new(py, trace)?;
    let (rim, regions) = py
        .detach(|| dialect::measure(&launch, threads, &mut report.observer))
        .map_err(|error| refused(py, &error))?;
    Ok((
        bytes(py, &rim),
        region_tuples(&regions),
        bytes(py, &page),
        report.finish(py)?,
    ))
}

/// Variants of one launch, measured quickly.
#[pyclass(module = "islet_cli._native.rim")]
struct Probe(Inner);

#[pymethods]
impl Probe {
    #[new]
    fn new(py: Python<'_>, base: Arguments) -> PyResult<Self> {
        let base = base.launch()?;
        let inner = py
            .detach(|| Inner::new(base))
            .map_err(|error| refused(py, &error))?;
        Ok(Self(inner))
    }

    /// The RIM of a variant; None when it would be refused at launch.
    fn rim(&mut self, py: Python<'_>, variant: Arguments) -> PyResult<Option<Bytes>> {
        let variant = variant.launch()?;
        let rim = py.detach(|| self.0.rim(&variant));
        Ok(rim.ok().map(|rim| bytes(py, &rim)))
    }
}

/// The device-tree area of a kvmtool launch whose initrd lies at `initrd` (first address, end), wherever its files are.
#[pyfunction]
fn build_device_tree(
    py: Python<'_>,
    launch: Arguments,
    initrd: Option<(u64, u64)>,
) -> PyResult<Bytes> {
    let machine = launch.launch()?.machine;
    let range = initrd.map(|(start, end)| start..end);
    let blob = machine
        .device_tree(range)
        .map_err(|error| raise(py, Family::Input, "device-tree", &error.to_string()))?;
    Ok(bytes(py, &blob.area()))
}

/// Depth, name and properties of one node.
type NodeTuple = (usize, String, Vec<(String, Bytes)>);
/// Bytes of the blob, memory reservations (address, bytes), nodes.
type TreeTuple = (usize, Vec<(u64, u64)>, Vec<NodeTuple>);

/// Read the device tree at the start of `area`: bytes of the blob, memory reservations, nodes in document order.
#[pyfunction]
fn read_device_tree(py: Python<'_>, area: &[u8]) -> PyResult<TreeTuple> {
    let tree = read::read(area)
        .map_err(|error| raise(py, Family::Input, "device-tree", &error.to_string()))?;
    let nodes = tree
        .nodes
        .into_iter()
        .map(|node| {
            let properties = node.properties.into_iter();
            (
                node.depth,
                node.name,
                properties
                    .map(|property| (property.name, bytes(py, &property.data)))
                    .collect(),
            )
        })
        .collect();
    Ok((tree.total_size, tree.reservations, nodes))
}

/// Add to the submodule `_native.rim`.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(explain, module)?)?;
    module.add_function(wrap_pyfunction!(measure_sequence, module)?)?;
    module.add_function(wrap_pyfunction!(build_device_tree, module)?)?;
    module.add_function(wrap_pyfunction!(read_device_tree, module)?)?;
    module.add_class::<Probe>()
}
