//! What runs between clone and exec: the init stub and the application's last steps.
//!
//! The order matters. Everything that comes from the old root is taken hold of before pivot_root; every
//! path of the new root is resolved after it, so that a symbolic link inside cannot lead out.

use std::convert::Infallible;
use std::ffi::CStr;

use super::plan::{Place, Plan};
use super::sys::{self, Outcome};
use super::Step;

/// The usual container default, without MKNOD: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID,
/// SETPCAP, NET_BIND_SERVICE, NET_RAW, SYS_CHROOT, AUDIT_WRITE, SETFCAP.
const CAPABILITIES: u64 = bits(&[0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 29, 31]);
const CAP_KILL: u64 = bits(&[5]);

const fn bits(numbers: &[u32]) -> u64 {
    let (mut out, mut index) = (0, 0);
    while index < numbers.len() {
        out |= 1 << numbers[index];
        index += 1;
    }
    out
}

const NO_EXTRAS: libc::c_ulong = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;

/// (path, major, minor) of the devices in `/dev`.
const DEVICES: &[(&CStr, u32, u32)] = &[
    (c"/dev/null", 1, 3),
    (c"/dev/zero", 1, 5),
    (c"/dev/full", 1, 7),
    (c"/dev/random", 1, 8),
    (c"/dev/urandom", 1, 9),
    (c"/dev/tty", 5, 0),
];

/// (target, path) of the links in `/dev`.
const DEVICE_LINKS: &[(&CStr, &CStr)] = &[
    (c"/proc/self/fd", c"/dev/fd"),
    (c"/proc/self/fd/0", c"/dev/stdin"),
    (c"/proc/self/fd/1", c"/dev/stdout"),
    (c"/proc/self/fd/2", c"/dev/stderr"),
    (c"pts/ptmx", c"/dev/ptmx"),
];

/// Parts of `/proc` that stay readable but cannot be written.
const PROC_READ_ONLY: &[&CStr] = &[
    c"/proc/sys",
    c"/proc/bus",
    c"/proc/fs",
    c"/proc/irq",
    c"/proc/sysrq-trigger",
];

/// Parts of `/proc` that tell about the whole realm.
const PROC_MASKED_FILES: &[&CStr] = &[
    c"/proc/kcore",
    c"/proc/keys",
    c"/proc/key-users",
    c"/proc/kmsg",
    c"/proc/latency_stats",
    c"/proc/sched_debug",
    c"/proc/timer_list",
    c"/proc/timer_stats",
];
const PROC_MASKED_DIRECTORIES: &[&CStr] = &[c"/proc/acpi", c"/proc/asound", c"/proc/scsi"];

/// A failed step with its `errno`.
type Stage<T = ()> = Result<T, (Step, i32)>;

fn at<T>(step: Step, outcome: Outcome<T>) -> Stage<T> {
    outcome.map_err(|error| (step, error))
}

fn report(plan: &Plan, (step, error): (Step, i32)) -> ! {
    let mut message = [0u8; 8];
    message[..4].copy_from_slice(&(step as u32).to_ne_bytes());
    message[4..].copy_from_slice(&error.to_ne_bytes());
    sys::write_short(plan.error, &message);
    sys::exit(127)
}

/// Body of pid 1 of the new namespaces.
pub(super) fn stub(plan: &mut Plan) {
    let application = match surroundings(plan).and_then(|()| start_application(plan)) {
        Ok(pid) => pid,
        Err(failure) => report(plan, failure),
    };
    match retire(plan) {
        Ok(signals) => supervise(plan, application, signals),
        Err(failure) => report(plan, failure),
    }
}

fn surroundings(plan: &mut Plan) -> Stage {
    // Nobody may look into this process: it is still a copy of the manager.
    at(Step::Stub, sys::prctl(libc::PR_SET_DUMPABLE, 0))?;
    sys::umask(0);
    switch_root(plan)?;
    at(Step::Hostname, sys::set_hostname(&plan.hostname))?;
    devices()?;
    proc_file_system()?;
    for bind in &plan.binds {
        at(Step::BindTarget, bind_file(bind.tree, &bind.target))?;
    }
    at(
        Step::WorkingDirectory,
        make_directory(&plan.cwd, plan.uid, plan.gid),
    )
}

fn switch_root(plan: &mut Plan) -> Stage {
    at(
        Step::PrivateMounts,
        sys::mount(None, c"/", None, libc::MS_REC | libc::MS_PRIVATE, None),
    )?;
    let root = plan.root.as_c_str();
    let bound =
        sys::mount(Some(root), root, None, libc::MS_BIND | libc::MS_REC, None).and_then(|()| {
            sys::mount(
                None,
                root,
                None,
                libc::MS_BIND | libc::MS_REMOUNT | libc::MS_NODEV,
                None,
            )
        });
    at(Step::BindRoot, bound)?;
    for bind in &mut plan.binds {
        bind.tree = at(Step::BindSource, sys::open_tree(&bind.source))?;
    }
    at(
        Step::PivotRoot,
        sys::chdir(root).and_then(|()| sys::pivot_root_here()),
    )?;
    at(
        Step::DetachOldRoot,
        sys::detach(c".").and_then(|()| sys::chdir(c"/")),
    )
}

fn devices() -> Stage {
    at(Step::Devices, fill_dev())
}

fn fill_dev() -> Outcome {
    sys::mkdir(c"/dev", 0o755)?;
    let flags = libc::MS_NOSUID | libc::MS_NOEXEC;
    sys::mount(
        Some(c"tmpfs"),
        c"/dev",
        Some(c"tmpfs"),
        flags,
        Some(c"mode=755,size=64k"),
    )?;
    for (path, major, minor) in DEVICES {
        sys::device(path, *major, *minor)?;
    }
    for (target, path) in DEVICE_LINKS {
        sys::symlink(target, path)?;
    }
    sys::mkdir(c"/dev/pts", 0o755)?;
    let options = c"newinstance,ptmxmode=0666,mode=0620,gid=5";
    sys::mount(
        Some(c"devpts"),
        c"/dev/pts",
        Some(c"devpts"),
        flags,
        Some(options),
    )?;
    sys::mkdir(c"/dev/shm", 0o1777)?;
    sys::mount(
        Some(c"shm"),
        c"/dev/shm",
        Some(c"tmpfs"),
        NO_EXTRAS,
        Some(c"mode=1777,size=64m"),
    )
}

fn proc_file_system() -> Stage {
    let mounted = sys::mkdir(c"/proc", 0o555)
        .and_then(|_| sys::mount(Some(c"proc"), c"/proc", Some(c"proc"), NO_EXTRAS, None));
    at(Step::Proc, mounted)?;
    at(Step::ProtectProc, protect_proc())
}

fn protect_proc() -> Outcome {
    let read_only = libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY | NO_EXTRAS;
    for path in PROC_READ_ONLY {
        if_there(
            sys::mount(Some(path), path, None, libc::MS_BIND | libc::MS_REC, None)
                .and_then(|()| sys::mount(None, path, None, read_only, None)),
        )?;
    }
    for path in PROC_MASKED_FILES {
        if_there(sys::mount(
            Some(c"/dev/null"),
            path,
            None,
            libc::MS_BIND,
            None,
        ))?;
    }
    for path in PROC_MASKED_DIRECTORIES {
        let flags = libc::MS_RDONLY | NO_EXTRAS;
        if_there(sys::mount(
            Some(c"tmpfs"),
            path,
            Some(c"tmpfs"),
            flags,
            Some(c"size=0k"),
        ))?;
    }
    Ok(())
}

/// What the kernel does not have needs no protection.
fn if_there(outcome: Outcome) -> Outcome {
    match outcome {
        Err(libc::ENOENT) => Ok(()),
        other => other,
    }
}

fn make_parents(place: &Place) -> Outcome {
    for parent in &place.parents {
        sys::mkdir(parent, 0o755)?;
    }
    Ok(())
}

fn bind_file(tree: i32, target: &Place) -> Outcome {
    make_parents(target)?;
    let flags = libc::O_RDONLY | libc::O_CREAT | libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let place = match sys::open(&target.path, flags, 0o644) {
        // A symbolic link (resolv.conf often is one) gives way to a file of its own.
        Err(libc::ELOOP) => {
            sys::unlink(&target.path)?;
            sys::open(&target.path, flags, 0o644)?
        }
        other => other?,
    };
    sys::close(place);
    sys::attach_tree(tree, &target.path)?;
    sys::close(tree);
    let flags = libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY | NO_EXTRAS;
    sys::mount(None, &target.path, None, flags, None)
}

fn make_directory(place: &Place, uid: u32, gid: u32) -> Outcome {
    make_parents(place)?;
    if sys::mkdir(&place.path, 0o755)? {
        sys::chown(&place.path, uid, gid)?;
    }
    Ok(())
}

fn start_application(plan: &Plan) -> Stage<i32> {
    match at(Step::CloneApplication, sys::fork())? {
        0 => {
            let failure = match become_application(plan) {
                Err(failure) => failure,
                Ok(never) => match never {},
            };
            report(plan, failure)
        }
        pid => Ok(pid),
    }
}

fn become_application(plan: &Plan) -> Stage<Infallible> {
    at(Step::Session, sys::new_session())?;
    at(Step::StandardStreams, standard_streams(plan))?;
    at(Step::Keyring, sys::new_session_keyring())?;
    at(Step::WorkingDirectory, sys::chdir(&plan.cwd.path))?;
    sys::umask(0o022);
    drop_privileges(plan)?;
    at(Step::CloseDescriptors, sys::close_on_exec_from(3))?;
    sys::default_signals();
    Err((Step::Exec, execute(plan)))
}

fn standard_streams(plan: &Plan) -> Outcome {
    let null = sys::open(c"/dev/null", libc::O_RDONLY, 0)?;
    sys::duplicate_to(null, 0)?;
    for (descriptor, number) in [(plan.stdout, 1), (plan.stderr, 2)] {
        // The application may open /dev/stdout again under its own id.
        sys::fchown(descriptor, plan.uid, plan.gid)?;
        sys::duplicate_to(descriptor, number)?;
    }
    Ok(())
}

fn drop_privileges(plan: &Plan) -> Stage {
    at(Step::Capabilities, sys::limit_bounding_set(CAPABILITIES))?;
    at(Step::SetGroups, sys::set_groups(&plan.groups))?;
    at(Step::SetGid, sys::set_gid(plan.gid))?;
    at(Step::SetUid, sys::set_uid(plan.uid))?;
    if !sys::ids_are(plan.uid, plan.gid) {
        return Err((Step::VerifyIds, libc::EPERM));
    }
    let kept = if plan.uid == 0 { CAPABILITIES } else { 0 };
    at(Step::Capabilities, sys::limit_capabilities(kept))?;
    at(Step::NoNewPrivs, sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1))
}

/// Try each candidate as execvp(3) does; returns the reason.
fn execute(plan: &Plan) -> i32 {
    let mut denied = false;
    let mut reason = libc::ENOENT;
    for program in &plan.programs {
        reason = sys::exec(program, plan.argv.as_ptr(), plan.env.as_ptr());
        match reason {
            libc::ENOENT | libc::ENOTDIR => {}
            libc::EACCES => denied = true,
            other => return other,
        }
    }
    if denied {
        libc::EACCES
    } else {
        reason
    }
}

/// Give up what only the set-up needed; returns the signal descriptor.
fn retire(plan: &Plan) -> Stage<i32> {
    let signals = at(Step::Stub, sys::signal_descriptor())?;
    let tidy = || -> Outcome {
        sys::chdir(c"/")?;
        let null = sys::open(c"/dev/null", libc::O_RDWR, 0)?;
        for number in 0..3 {
            sys::duplicate_to(null, number)?;
        }
        sys::limit_bounding_set(0)?;
        sys::limit_capabilities(CAP_KILL)?;
        sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1)
    };
    at(Step::Stub, tidy())?;
    // Last: this closes the error pipe, so that the application's exec is what the manager waits for.
    let mut kept = [plan.lifeline as u32, plan.status as u32, signals as u32];
    kept.sort_unstable();
    let mut next = 3;
    for descriptor in kept {
        at(Step::Stub, sys::close_between(next, descriptor - 1))?;
        next = descriptor + 1;
    }
    at(Step::Stub, sys::close_between(next, u32::MAX))?;
    Ok(signals)
}

/// Forward signals and reap until the application ends or the manager is gone.
fn supervise(plan: &Plan, application: i32, signals: i32) -> ! {
    loop {
        if sys::wait_for_signal_or_end(signals, plan.lifeline) {
            sys::exit(137);
        }
        match sys::next_signal(signals) {
            Some(libc::SIGCHLD) => {
                while let Some((pid, status)) = sys::reap_one() {
                    if pid == application {
                        sys::write_short(plan.status, &status.to_ne_bytes());
                        sys::exit(0);
                    }
                }
            }
            Some(signal) => sys::signal_group(application, signal),
            None => {}
        }
    }
}
