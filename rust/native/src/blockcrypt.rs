//! Bindings of `islet-blockcrypt`.

use std::fs::File;
use std::path::PathBuf;

use islet_blockcrypt::{Error, Mapping as Inner, Options, Volume};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use zeroize::Zeroizing;

use crate::error::{raise, Family};

fn to_python(py: Python<'_>, error: &Error) -> PyErr {
    match error {
        Error::Io(_) => raise(py, Family::Operation, "disk", &error.to_string()),
        _ => raise(py, Family::Input, "bad-cipher", &error.to_string()),
    }
}

/// One dm-crypt mapping; see `blockcrypt.pyi`.
#[pyclass(frozen)]
struct Mapping(Inner);

#[pymethods]
impl Mapping {
    #[new]
    #[pyo3(signature = (spec, key, *, sector_size=512, iv_offset=0, iv_large_sectors=false))]
    fn new(
        py: Python<'_>,
        spec: &str,
        key: &[u8],
        sector_size: u32,
        iv_offset: u64,
        iv_large_sectors: bool,
    ) -> PyResult<Self> {
        let options = Options {
            sector_size,
            iv_offset,
            iv_large_sectors,
        };
        let made = spec.parse().and_then(|spec| Inner::new(spec, key, options));
        made.map(Self).map_err(|error| to_python(py, &error))
    }

    fn iv<'py>(&self, py: Python<'py>, sector: u64) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.iv(sector))
    }

    fn encrypt<'py>(
        &self,
        py: Python<'py>,
        sector: u64,
        data: &[u8],
    ) -> PyResult<Bound<'py, PyBytes>> {
        let mut buffer = Zeroizing::new(data.to_vec());
        py.detach(|| self.0.encrypt(sector, &mut buffer))
            .map_err(|error| to_python(py, &error))?;
        Ok(PyBytes::new(py, &buffer))
    }

    fn decrypt<'py>(
        &self,
        py: Python<'py>,
        sector: u64,
        data: &[u8],
    ) -> PyResult<Bound<'py, PyBytes>> {
        let mut buffer = Zeroizing::new(data.to_vec());
        py.detach(|| self.0.decrypt(sector, &mut buffer))
            .map_err(|error| to_python(py, &error))?;
        Ok(PyBytes::new(py, &buffer))
    }

    #[pyo3(signature = (path, start, size, offset, length))]
    fn read_at<'py>(
        &self,
        py: Python<'py>,
        path: PathBuf,
        start: u64,
        size: u64,
        offset: u64,
        length: usize,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let read = || -> Result<Zeroizing<Vec<u8>>, Error> {
            let file = File::open(path)?;
            let volume = Volume::new(&self.0, &file, start, size)?;
            volume.check(offset, length)?;
            let mut buffer = Zeroizing::new(vec![0; length]);
            volume.read_at(offset, &mut buffer)?;
            Ok(buffer)
        };
        let buffer = py.detach(read).map_err(|error| to_python(py, &error))?;
        Ok(PyBytes::new(py, &buffer))
    }

    #[pyo3(signature = (path, start, size, offset, data))]
    fn write_at(
        &self,
        py: Python<'_>,
        path: PathBuf,
        start: u64,
        size: u64,
        offset: u64,
        data: &[u8],
    ) -> PyResult<()> {
        let write = || -> Result<(), Error> {
            let file = File::options().read(true).write(true).open(path)?;
            Volume::new(&self.0, &file, start, size)?.write_at(offset, data)
        };
        py.detach(write).map_err(|error| to_python(py, &error))
    }
}

/// Fill the submodule `_native.blockcrypt`.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Mapping>()
}
