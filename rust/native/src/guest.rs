//! Bindings of `islet-guest`.

use std::os::fd::IntoRawFd;
use std::path::PathBuf;

use islet_guest::{interfaces, keyring, mounts, power, spawn, Error};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use zeroize::Zeroizing;

use crate::error::{raise, Family};

/// An operating-system failure becomes `OperationError` with code `errno-N`; a failed start `spawn-STEP`.
fn failed(py: Python<'_>, error: &Error) -> PyErr {
    let message = error.to_string();
    match error {
        Error::Argument(_) => raise(py, Family::Input, "argument", &message),
        Error::Os { .. } => raise(
            py,
            Family::Operation,
            &format!("errno-{}", error.errno().unwrap_or(0)),
            &message,
        ),
        Error::Spawn { step, .. } => {
            let exception = raise(py, Family::Operation, &format!("spawn-{step}"), &message);
            // Best effort: without the attribute the step alone still tells what failed.
            let _ = exception.value(py).setattr("errno", error.errno());
            exception
        }
    }
}

#[pyfunction]
#[pyo3(signature = (source, target, fstype=None, flags=0, data=None))]
fn mount(
    py: Python<'_>,
    source: Option<String>,
    target: PathBuf,
    fstype: Option<String>,
    flags: u64,
    data: Option<String>,
) -> PyResult<()> {
    py.detach(|| {
        mounts::mount(
            source.as_deref(),
            &target,
            fstype.as_deref(),
            flags,
            data.as_deref(),
        )
    })
    .map_err(|error| failed(py, &error))
}

#[pyfunction]
#[pyo3(signature = (target, detach=false))]
fn unmount(py: Python<'_>, target: PathBuf, detach: bool) -> PyResult<()> {
    py.detach(|| mounts::unmount(&target, detach))
        .map_err(|error| failed(py, &error))
}

#[pyfunction]
fn add_logon_key(py: Python<'_>, description: &str, key: &[u8]) -> PyResult<i32> {
    keyring::add_logon_key(description, Zeroizing::new(key.to_vec()))
        .map_err(|error| failed(py, &error))
}

#[pyfunction]
fn remove_key(py: Python<'_>, serial: i32) -> PyResult<()> {
    keyring::remove_key(serial).map_err(|error| failed(py, &error))
}

#[pyfunction]
fn reboot(py: Python<'_>, action: &str) -> PyResult<()> {
    let action = match action {
        "poweroff" => power::Action::PowerOff,
        "restart" => power::Action::Restart,
        other => return Err(PyValueError::new_err(format!("unknown action {other:?}"))),
    };
    py.detach(|| power::reboot(action))
        .map_err(|error| failed(py, &error))
}

/// `(name, loopback, address, netmask, destination)`, addresses as text.
type AddressRow = (String, bool, String, Option<String>, Option<String>);

#[pyfunction]
fn interface_addresses(py: Python<'_>) -> PyResult<Vec<AddressRow>> {
    let list = py
        .detach(interfaces::addresses)
        .map_err(|error| failed(py, &error))?;
    Ok(list
        .into_iter()
        .map(|one| {
            let text = |ip: std::net::IpAddr| ip.to_string();
            (
                one.interface,
                one.loopback,
                one.address.to_string(),
                one.netmask.map(text),
                one.destination.map(text),
            )
        })
        .collect())
}

/// `(pid, stdout, stderr, status, lifeline)`; the caller owns the descriptors.
type SpawnedRow = (i32, i32, i32, i32, i32);

#[pyfunction]
#[pyo3(name = "spawn", signature = (*, root, argv, env, cwd, uid, gid, groups, hostname, binds))]
#[allow(clippy::too_many_arguments)]
fn spawn_process(
    py: Python<'_>,
    root: PathBuf,
    argv: Vec<Vec<u8>>,
    env: Vec<Vec<u8>>,
    cwd: Vec<u8>,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    hostname: Vec<u8>,
    binds: Vec<(PathBuf, Vec<u8>)>,
) -> PyResult<SpawnedRow> {
    let spec = spawn::Spec {
        root,
        argv,
        env,
        cwd,
        uid,
        gid,
        groups,
        hostname,
        binds,
    };
    let started = py
        .detach(|| spawn::spawn(&spec))
        .map_err(|error| failed(py, &error))?;
    Ok((
        started.pid,
        started.stdout.into_raw_fd(),
        started.stderr.into_raw_fd(),
        started.status.into_raw_fd(),
        started.lifeline.into_raw_fd(),
    ))
}

/// Fill the submodule `_native.guest`.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(mount, module)?)?;
    module.add_function(wrap_pyfunction!(unmount, module)?)?;
    module.add_function(wrap_pyfunction!(add_logon_key, module)?)?;
    module.add_function(wrap_pyfunction!(remove_key, module)?)?;
    module.add_function(wrap_pyfunction!(reboot, module)?)?;
    module.add_function(wrap_pyfunction!(interface_addresses, module)?)?;
    module.add_function(wrap_pyfunction!(spawn_process, module)?)
}
