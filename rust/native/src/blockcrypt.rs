//! Bindings of `islet-blockcrypt`.

use pyo3::prelude::*;

/// Fill the submodule `_native.blockcrypt`.
pub fn register(_module: &Bound<'_, PyModule>) -> PyResult<()> {
    Ok(())
}
