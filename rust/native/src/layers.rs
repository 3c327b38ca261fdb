//! Bindings of `islet-layers`.

use std::path::PathBuf;
use std::sync::Arc;

use islet_layers::{Error, Layer, Limits, Options};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::error::{raise, Family};

// Linux's numbers; their names in `std::io::ErrorKind` are younger than our oldest compiler.
const ENOSPC: i32 = 28;
const EDQUOT: i32 = 122;

/// How far an application of layers is; another thread may look at it and end it.
#[pyclass(frozen, name = "Progress", module = "islet_cli._native.layers")]
struct Progress(Arc<islet_layers::Progress>);

#[pymethods]
impl Progress {
    #[new]
    fn new() -> Self {
        Self(Arc::default())
    }

    #[getter]
    fn done(&self) -> u64 {
        self.0.done()
    }

    #[getter]
    fn total(&self) -> u64 {
        self.0.total()
    }

    fn cancel(&self) {
        self.0.cancel();
    }
}

#[derive(FromPyObject)]
struct LayerArguments {
    path: PathBuf,
    media_type: String,
    digest: String,
    size: u64,
    diff_id: String,
}

#[derive(FromPyObject)]
struct LimitArguments {
    max_layer_bytes: u64,
    max_image_bytes: u64,
    max_entries: u64,
    max_layers: usize,
    max_extended_bytes: u64,
    max_held_bytes: u64,
}

fn to_python(py: Python<'_>, error: &Error) -> PyErr {
    let message = error.to_string();
    match error {
        Error::Refused { code, .. } => raise(py, Family::Verification, code.as_str(), &message),
        Error::Interrupted => raise(py, Family::Operation, "interrupted", &message),
        Error::Io { source, .. } => {
            let full = matches!(source.raw_os_error(), Some(ENOSPC | EDQUOT));
            raise(
                py,
                Family::Operation,
                if full { "disk-full" } else { "io" },
                &message,
            )
        }
    }
}

#[pyfunction]
fn apply(
    py: Python<'_>,
    root: PathBuf,
    layers: Vec<LayerArguments>,
    limits: LimitArguments,
    ownership: bool,
    skip_devices: bool,
    progress: &Progress,
) -> PyResult<Vec<(&'static str, String)>> {
    let layers: Vec<Layer> = layers
        .into_iter()
        .map(|layer| Layer {
            path: layer.path,
            media_type: layer.media_type,
            digest: layer.digest,
            size: layer.size,
            diff_id: layer.diff_id,
        })
        .collect();
    let limits = Limits {
        layer_bytes: limits.max_layer_bytes,
        image_bytes: limits.max_image_bytes,
        entries: limits.max_entries,
        layers: limits.max_layers,
        extended_bytes: limits.max_extended_bytes,
        held_bytes: limits.max_held_bytes,
    };
    let options = Options {
        limits,
        ownership,
        skip_devices,
    };
    let warnings = py
        .detach(|| islet_layers::apply_layers(&root, &layers, &options, &progress.0))
        .map_err(|error| to_python(py, &error))?;
    Ok(warnings
        .into_iter()
        .map(|(warning, path)| (warning.as_str(), path))
        .collect())
}

#[pyfunction]
fn open_in_root<'py>(
    py: Python<'py>,
    root: PathBuf,
    path: Vec<u8>,
    limit: u64,
) -> PyResult<Option<Bound<'py, PyBytes>>> {
    let data = py
        .detach(|| islet_layers::read_in_root(&root, &path, limit))
        .map_err(|error| to_python(py, &error))?;
    Ok(data.map(|data| PyBytes::new(py, &data)))
}

#[pyfunction]
fn exchange(py: Python<'_>, one: PathBuf, other: PathBuf) -> PyResult<bool> {
    py.detach(|| islet_layers::exchange(&one, &other))
        .map_err(|error| to_python(py, &error))
}

#[pyfunction]
fn flush_file_system(py: Python<'_>, directory: PathBuf) -> PyResult<()> {
    py.detach(|| islet_layers::flush_file_system(&directory))
        .map_err(|error| to_python(py, &error))
}

/// Fill the submodule `_native.layers`.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Progress>()?;
    module.add_function(wrap_pyfunction!(apply, module)?)?;
    module.add_function(wrap_pyfunction!(open_in_root, module)?)?;
    module.add_function(wrap_pyfunction!(exchange, module)?)?;
    module.add_function(wrap_pyfunction!(flush_file_system, module)?)?;
    Ok(())
}
