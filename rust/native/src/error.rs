//! The one place where a Rust error becomes a Python exception.
//!
//! Python owns the hierarchy (`islet_cli.errors`); Rust names a family and a stable code.

use pyo3::prelude::*;
use pyo3::types::{IntoPyDict, PyDict};

/// The families of `islet_cli.errors` that native code raises.
#[derive(Clone, Copy, Debug)]
#[allow(dead_code)]
pub enum Family {
    /// Malformed or contradictory input (exit code 2).
    Input,
    /// A check refused (exit code 1).
    Verification,
    /// A program, device or service is missing or unreachable (exit code 3).
    Unavailable,
    /// An operation on a realm or application failed (exit code 4).
    Operation,
}

impl Family {
    fn class_name(self) -> &'static str {
        match self {
            Self::Input => "InputError",
            Self::Verification => "VerificationError",
            Self::Unavailable => "UnavailableError",
            Self::Operation => "OperationError",
        }
    }
}

/// Build the exception of `family` with its stable `code` and one-line `message`.
pub fn raise(py: Python<'_>, family: Family, code: &str, message: &str) -> PyErr {
    let build = || -> PyResult<PyErr> {
        let class = py
            .import("islet_cli.errors")?
            .getattr(family.class_name())?;
        let kwargs: Bound<'_, PyDict> = [("code", code)].into_py_dict(py)?;
        Ok(PyErr::from_value(class.call((message,), Some(&kwargs))?))
    };
    build().unwrap_or_else(|error| error)
}
