//! Bindings of `islet-guest`.

use pyo3::prelude::*;

/// Fill the submodule `_native.guest`.
pub fn register(_module: &Bound<'_, PyModule>) -> PyResult<()> {
    Ok(())
}
