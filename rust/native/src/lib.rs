//! `islet_cli._native`: conversions between Python and the Rust crates, and nothing else.
//!
//! One file a component; each registers a submodule (`_native.rim`, `_native.layers`, …).
//! Every function borrows bytes or paths, releases the GIL around the work, calls one
//! library function and maps its error to a class of `islet_cli.errors`.

use pyo3::prelude::*;

mod blockcrypt;
mod error;
mod granulehash;
mod guest;
mod layers;
mod ratls;
mod rim;
mod rim_report;

/// Fills a submodule.
type Register = fn(&Bound<'_, PyModule>) -> PyResult<()>;

/// The extension module.
#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let register: [(&str, Register); 6] = [
        ("blockcrypt", blockcrypt::register),
        ("granulehash", granulehash::register),
        ("guest", guest::register),
        ("layers", layers::register),
        ("ratls", ratls::register),
        ("rim", rim::register),
    ];
    for (name, fill) in register {
        let submodule = PyModule::new(module.py(), name)?;
        fill(&submodule)?;
        module.add_submodule(&submodule)?;
    }
    Ok(())
}
