//! Bindings of `islet-ratls`.

use pyo3::prelude::*;

/// Fill the submodule `_native.ratls`.
pub fn register(_module: &Bound<'_, PyModule>) -> PyResult<()> {
    Ok(())
}
