//! Start one process contained: namespaces of its own, a root of its own, few privileges.
//!
//! ```text
//! manager ── clone(mount, pid, ipc, uts, cgroup namespaces) ──> init stub (pid 1 inside)
//!                                                       └─ clone ─> application (pid 2 inside)
//! ```
//!
//! The stub builds the mounts, switches the root, starts the application, forwards signals to its process
//! group, reaps orphans, and reports the application's raw wait status. When it ends the kernel kills
//! whatever is left in the pid namespace. When the manager ends, the stub sees its end of a pipe close.
//!
//! The manager has many threads, so between clone and exec only raw system calls are made: everything that
//! needs memory is prepared before.

mod child;
mod plan;
mod sys;

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use crate::{last_error, Error};
use plan::Plan;

/// What to start, and in which surroundings.
#[derive(Clone, Debug, Default)]
pub struct Spec {
    /// Directory that becomes `/`.
    pub root: PathBuf,
    /// Arguments; the first is the program, searched in `PATH` of `env` when it has no slash.
    pub argv: Vec<Vec<u8>>,
    /// `NAME=VALUE` strings, the whole environment.
    pub env: Vec<Vec<u8>>,
    /// Absolute working directory inside the root; made when missing.
    pub cwd: Vec<u8>,
    /// User, group and supplementary groups.
    pub uid: u32,
    /// See `uid`.
    pub gid: u32,
    /// See `uid`.
    pub groups: Vec<u32>,
    /// Host name in the UTS namespace.
    pub hostname: Vec<u8>,
    /// (file outside, absolute path inside): bind-mounted read-only.
    pub binds: Vec<(PathBuf, Vec<u8>)>,
}

/// A running contained process. Dropping `lifeline` kills it.
#[derive(Debug)]
pub struct Spawned {
    /// The stub's pid in the caller's namespace: signals go there, and it must be waited for.
    pub pid: i32,
    /// Read end of the application's standard output.
    pub stdout: OwnedFd,
    /// Read end of its standard error.
    pub stderr: OwnedFd,
    /// Gives the application's raw wait status, 4 bytes native order, when it ends; nothing when the stub was killed.
    pub status: OwnedFd,
    /// Held open as long as the process shall live.
    pub lifeline: OwnedFd,
}

macro_rules! steps {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// The steps of the set-up, for error reports.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Step { $($(#[$doc])* $name,)* }

        impl Step {
            const ALL: &'static [Step] = &[$(Step::$name,)*];

            /// A short stable name.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

steps! {
    /// clone(2) of the init stub.
    Clone = "clone",
    /// Making all mounts private to the namespace.
    PrivateMounts = "private-mounts",
    /// Making the root a mount point without devices.
    BindRoot = "bind-root",
    /// Taking hold of a file that is to be bound inside.
    BindSource = "bind-source",
    /// pivot_root(2).
    PivotRoot = "pivot-root",
    /// Letting go of the old root.
    DetachOldRoot = "detach-old-root",
    /// sethostname(2).
    Hostname = "hostname",
    /// Filling `/dev`.
    Devices = "devices",
    /// Mounting `/proc`.
    Proc = "proc",
    /// Write-protecting or masking a part of `/proc`.
    ProtectProc = "protect-proc",
    /// Making the place of a bound file, or binding it.
    BindTarget = "bind-target",
    /// Making the working directory, or entering it.
    WorkingDirectory = "working-directory",
    /// clone(2) of the application.
    CloneApplication = "clone-application",
    /// Standard input, output and error.
    StandardStreams = "standard-streams",
    /// setsid(2).
    Session = "session",
    /// A session key ring of its own.
    Keyring = "keyring",
    /// Dropping capabilities.
    Capabilities = "capabilities",
    /// setgroups(2).
    SetGroups = "setgroups",
    /// setresgid(2).
    SetGid = "setgid",
    /// setresuid(2).
    SetUid = "setuid",
    /// The kernel shows other ids than were set.
    VerifyIds = "verify-ids",
    /// PR_SET_NO_NEW_PRIVS.
    NoNewPrivs = "no-new-privs",
    /// Closing other descriptors.
    CloseDescriptors = "close-descriptors",
    /// execve(2).
    Exec = "exec",
    /// The stub's own preparation.
    Stub = "stub",
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A pipe with both ends closed on exec.
fn pipe() -> Result<(OwnedFd, OwnedFd), Error> {
    let mut ends: [RawFd; 2] = [-1; 2];
    // SAFETY: `ends` has room for the two descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(last_error("pipe"));
    }
    // SAFETY: both descriptors are new and owned by nobody else.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

/// Start the process; returns once the application's program has been executed.
///
/// # Errors
/// [`Error::Argument`] for a NUL in a string or an unusable path; [`Error::Spawn`] with the step and the
/// kernel's reason when the set-up failed, in which case no process is left.
pub fn spawn(spec: &Spec) -> Result<Spawned, Error> {
    let mut plan = Plan::prepare(spec)?;
    let (stdout, stdout_write) = pipe()?;
    let (stderr, stderr_write) = pipe()?;
    let (status, status_write) = pipe()?;
    let (lifeline_read, lifeline) = pipe()?;
    let (error_read, error_write) = pipe()?;
    plan.stdout = stdout_write.as_raw_fd();
    plan.stderr = stderr_write.as_raw_fd();
    plan.status = status_write.as_raw_fd();
    plan.lifeline = lifeline_read.as_raw_fd();
    plan.error = error_write.as_raw_fd();

    let pid = sys::clone_with_signals_blocked(sys::NAMESPACES, || child::stub(&mut plan)).map_err(
        |source| Error::Spawn {
            step: Step::Clone,
            source,
        },
    )?;
    drop((
        stdout_write,
        stderr_write,
        status_write,
        lifeline_read,
        error_write,
    ));

    match read_failure(&error_read) {
        None => Ok(Spawned {
            pid,
            stdout,
            stderr,
            status,
            lifeline,
        }),
        Some((step, source)) => {
            sys::kill_and_reap(pid);
            Err(Error::Spawn { step, source })
        }
    }
}

/// Read the failure report; end of file without one means that the program was executed.
fn read_failure(pipe: &OwnedFd) -> Option<(Step, io::Error)> {
    let mut report = [0u8; 8];
    let count = sys::read_full(pipe.as_raw_fd(), &mut report);
    if count == 0 {
        return None;
    }
    let number = |at: usize| {
        u32::from_ne_bytes([report[at], report[at + 1], report[at + 2], report[at + 3]])
    };
    let step = Step::ALL
        .get(number(0) as usize)
        .copied()
        .unwrap_or(Step::Stub);
    Some((step, io::Error::from_raw_os_error(number(4) as i32)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn step_numbers_are_their_positions() {
        for (position, step) in Step::ALL.iter().enumerate() {
            assert_eq!(*step as usize, position, "{step}");
        }
    }

    #[test]
    fn a_nul_in_an_argument_is_refused() {
        let spec = Spec {
            root: "/".into(),
            argv: vec![b"/bin/a\0b".to_vec()],
            cwd: b"/".to_vec(),
            ..Spec::default()
        };
        assert!(matches!(spawn(&spec), Err(Error::Argument(_))));
    }

    #[test]
    fn an_empty_argument_list_and_a_relative_directory_are_refused() {
        let empty = Spec {
            root: "/".into(),
            cwd: b"/".to_vec(),
            ..Spec::default()
        };
        assert!(matches!(spawn(&empty), Err(Error::Argument(_))));
        let relative = Spec {
            root: "/".into(),
            argv: vec![b"/a".to_vec()],
            cwd: b"a".to_vec(),
            ..Spec::default()
        };
        assert!(matches!(spawn(&relative), Err(Error::Argument(_))));
    }
}
