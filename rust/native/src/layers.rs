//! Bindings of `islet-layers`.

use pyo3::prelude::*;

/// Fill the submodule `_native.layers`.
pub fn register(_module: &Bound<'_, PyModule>) -> PyResult<()> {
    Ok(())
}
