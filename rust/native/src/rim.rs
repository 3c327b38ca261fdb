//! Bindings of `islet-rim`.

use pyo3::prelude::*;

/// Fill the submodule `_native.rim`.
pub fn register(_module: &Bound<'_, PyModule>) -> PyResult<()> {
    Ok(())
}
