//! Bindings of `islet-granulehash`.

use islet_granulehash::{Algorithm, Kernel, FIELD_SIZE, GRANULE_SIZE};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

fn algorithm(name: &str) -> PyResult<(Algorithm, usize)> {
    match name {
        "sha256" => Ok((Algorithm::Sha256, 32)),
        "sha512" => Ok((Algorithm::Sha512, 64)),
        _ => Err(PyValueError::new_err(format!(
            "unknown hash algorithm {name:?}"
        ))),
    }
}

/// The names of this machine's kernels, fastest first.
#[pyfunction]
fn kernels(hash_algo: &str) -> PyResult<Vec<&'static str>> {
    let (algorithm, _) = algorithm(hash_algo)?;
    Ok(Kernel::all_available(algorithm)
        .iter()
        .map(Kernel::name)
        .collect())
}

/// The digests of the granules in `data`, one after the other.
#[pyfunction]
#[pyo3(signature = (hash_algo, data, *, kernel=None))]
fn digest(
    py: Python<'_>,
    hash_algo: &str,
    data: &[u8],
    kernel: Option<&str>,
) -> PyResult<Py<PyBytes>> {
    let (algorithm, size) = algorithm(hash_algo)?;
    let kernel = Kernel::all_available(algorithm)
        .into_iter()
        .find(|found| kernel.is_none_or(|name| name == found.name()))
        .ok_or_else(|| PyValueError::new_err("this machine has no such kernel"))?;
    let (granules, rest) = data.as_chunks::<GRANULE_SIZE>();
    if !rest.is_empty() {
        return Err(PyValueError::new_err(format!(
            "{} bytes are no whole number of granules",
            data.len()
        )));
    }
    let digests = py.detach(|| {
        let mut fields = vec![[0; FIELD_SIZE]; granules.len()];
        kernel.digest(granules, &mut fields);
        fields
            .iter()
            .flat_map(|field| &field[..size])
            .copied()
            .collect::<Vec<u8>>()
    });
    Ok(PyBytes::new(py, &digests).unbind())
}

/// Fill the submodule `_native.granulehash`.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(kernels, module)?)?;
    module.add_function(wrap_pyfunction!(digest, module)?)
}
