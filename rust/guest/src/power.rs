//! Ending the machine (reboot(2)).

use crate::{last_error, Error};

/// What happens to the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Power off.
    PowerOff,
    /// Restart.
    Restart,
}

/// Flush every file system, then power off or restart. Does not return when the kernel obeys.
pub fn reboot(action: Action) -> Result<(), Error> {
    let command = match action {
        Action::PowerOff => libc::RB_POWER_OFF,
        Action::Restart => libc::RB_AUTOBOOT,
    };
    // SAFETY: both calls take no pointers.
    let result = unsafe {
        libc::sync();
        libc::reboot(command)
    };
    if result == 0 {
        Ok(())
    } else {
        Err(last_error("reboot"))
    }
}
