//! Logon keys in the user key ring (add_key(2), keyctl(2)).
//!
//! dm-crypt reads such a key once, while a table is loaded; user space can never read it back.

use zeroize::Zeroizing;

use crate::{c_string, last_error, Error};

/// Serial number of a key.
pub type Serial = i32;

const KEYCTL_REVOKE: libc::c_int = 3;
const KEYCTL_UNLINK: libc::c_int = 9;
const USER_KEYRING: libc::c_int = -4;

/// Put `key` into the user key ring as a `logon` key. The kernel wants `PREFIX:REST` as its description.
pub fn add_logon_key(description: &str, key: Zeroizing<Vec<u8>>) -> Result<Serial, Error> {
    let name = c_string("key description", description.as_bytes())?;
    // SAFETY: both strings are NUL-terminated and alive; `key` has the length that is given.
    let serial = unsafe {
        libc::syscall(
            libc::SYS_add_key,
            c"logon".as_ptr(),
            name.as_ptr(),
            key.as_ptr(),
            key.len(),
            libc::c_long::from(USER_KEYRING),
        )
    };
    if serial < 0 {
        return Err(last_error(format!("add key {description}")));
    }
    Serial::try_from(serial)
        .map_err(|_| Error::Argument(format!("key serial {serial} is out of range")))
}

/// Revoke the key and take it out of the user key ring.
pub fn remove_key(serial: Serial) -> Result<(), Error> {
    keyctl(KEYCTL_REVOKE, serial, 0, "revoke key")?;
    keyctl(KEYCTL_UNLINK, serial, USER_KEYRING, "unlink key")
}

fn keyctl(
    operation: libc::c_int,
    first: libc::c_int,
    second: libc::c_int,
    step: &str,
) -> Result<(), Error> {
    // SAFETY: these operations take plain numbers.
    let result = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            libc::c_long::from(operation),
            libc::c_long::from(first),
            libc::c_long::from(second),
        )
    };
    if result < 0 {
        Err(last_error(format!("{step} {first}")))
    } else {
        Ok(())
    }
}
