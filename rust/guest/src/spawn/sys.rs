//! System calls that are safe to make between clone and exec in a process with many threads.
//!
//! None of these allocates or takes a lock; errors are plain `errno` numbers.

use std::ffi::CStr;
use std::io;
use std::os::fd::RawFd;
use std::ptr;

/// `Err` carries the `errno`.
pub(super) type Outcome<T = ()> = Result<T, i32>;

/// The namespaces of a contained process. Network is shared by the applications of a realm.
pub(super) const NAMESPACES: libc::c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

const OPEN_TREE_CLONE: libc::c_uint = 1;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;
const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;

fn errno() -> i32 {
    // SAFETY: the location is this thread's own.
    unsafe { *libc::__errno_location() }
}

fn check(result: libc::c_long) -> Outcome<libc::c_long> {
    if result < 0 {
        Err(errno())
    } else {
        Ok(result)
    }
}

/// A signal set with every signal in it.
fn all_signals() -> libc::sigset_t {
    // SAFETY: a zeroed set is valid storage, and sigfillset initialises it.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut set);
        set
    }
}

fn fork_with(flags: libc::c_int) -> Outcome<i32> {
    // SAFETY: without CLONE_VM this is a fork: the child gets a copy of the address space and of this stack.
    // The raw call has the same argument order on every architecture for the first two arguments, and the
    // others are unused with these flags.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags | libc::SIGCHLD, 0, 0, 0, 0) };
    check(pid).map(|pid| pid as i32)
}

/// Run `child` in a new process, which ends with it. Signals stay blocked in the child until it unblocks
/// them, so that no handler of the parent's runs there.
pub(super) fn clone_with_signals_blocked(
    flags: libc::c_int,
    child: impl FnOnce(),
) -> io::Result<i32> {
    let all = all_signals();
    // SAFETY: both sets are valid; the old mask is restored below in the parent.
    let old = unsafe {
        let mut old: libc::sigset_t = std::mem::zeroed();
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut old);
        old
    };
    let outcome = fork_with(flags);
    if outcome == Ok(0) {
        child();
        exit(127);
    }
    // SAFETY: `old` was filled by the call above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &old, ptr::null_mut()) };
    outcome.map_err(io::Error::from_raw_os_error)
}

/// fork(2) without handlers.
pub(super) fn fork() -> Outcome<i32> {
    fork_with(0)
}

/// Kill a child and wait for it.
pub(super) fn kill_and_reap(pid: i32) {
    // SAFETY: plain numbers; the status is not wanted.
    unsafe {
        libc::kill(pid, libc::SIGKILL);
        while libc::waitpid(pid, ptr::null_mut(), 0) < 0 && errno() == libc::EINTR {}
    }
}

/// Read until `buffer` is full or the stream ends; returns the count.
pub(super) fn read_full(descriptor: RawFd, buffer: &mut [u8]) -> usize {
    let mut done = 0;
    while done < buffer.len() {
        // SAFETY: the slice's free part is valid for writing.
        let count = unsafe {
            libc::read(
                descriptor,
                buffer[done..].as_mut_ptr().cast(),
                buffer.len() - done,
            )
        };
        match count {
            0 => break,
            count if count > 0 => done += count as usize,
            _ if errno() == libc::EINTR => {}
            _ => break,
        }
    }
    done
}

/// Write a short message; pipes take up to PIPE_BUF bytes at once.
pub(super) fn write_short(descriptor: RawFd, data: &[u8]) {
    // SAFETY: the slice is valid for reading.
    unsafe { libc::write(descriptor, data.as_ptr().cast(), data.len()) };
}

pub(super) fn exit(code: i32) -> ! {
    // SAFETY: ends the process without running anything of the parent's.
    unsafe { libc::_exit(code) }
}

pub(super) fn mount(
    source: Option<&CStr>,
    target: &CStr,
    kind: Option<&CStr>,
    flags: libc::c_ulong,
    data: Option<&CStr>,
) -> Outcome {
    let pointer = |text: Option<&CStr>| text.map_or(ptr::null(), CStr::as_ptr);
    // SAFETY: null or NUL-terminated strings.
    let result = unsafe {
        libc::mount(
            pointer(source),
            target.as_ptr(),
            pointer(kind),
            flags,
            pointer(data).cast(),
        )
    };
    check(result.into()).map(drop)
}

/// A detached copy of the mount at `path`, as a descriptor.
pub(super) fn open_tree(path: &CStr) -> Outcome<RawFd> {
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as libc::c_uint;
    // SAFETY: NUL-terminated path.
    let result =
        unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    check(result).map(|descriptor| descriptor as RawFd)
}

/// Attach a detached mount at `path`. A symbolic link there is not followed.
pub(super) fn attach_tree(tree: RawFd, path: &CStr) -> Outcome {
    // SAFETY: NUL-terminated paths.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree,
            c"".as_ptr(),
            libc::AT_FDCWD,
            path.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    check(result).map(drop)
}

/// Make the current directory the root; the old one is stacked on the same place.
pub(super) fn pivot_root_here() -> Outcome {
    // SAFETY: NUL-terminated paths.
    check(unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) }).map(drop)
}

pub(super) fn detach(path: &CStr) -> Outcome {
    // SAFETY: NUL-terminated path.
    check(unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) }.into()).map(drop)
}

pub(super) fn chdir(path: &CStr) -> Outcome {
    // SAFETY: NUL-terminated path.
    check(unsafe { libc::chdir(path.as_ptr()) }.into()).map(drop)
}

/// mkdir; true when it was made now, false when something was there.
pub(super) fn mkdir(path: &CStr, mode: libc::mode_t) -> Outcome<bool> {
    // SAFETY: NUL-terminated path.
    match check(unsafe { libc::mkdir(path.as_ptr(), mode) }.into()) {
        Ok(_) => Ok(true),
        Err(libc::EEXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

pub(super) fn chown(path: &CStr, uid: u32, gid: u32) -> Outcome {
    // SAFETY: NUL-terminated path.
    check(unsafe { libc::lchown(path.as_ptr(), uid, gid) }.into()).map(drop)
}

pub(super) fn fchown(descriptor: RawFd, uid: u32, gid: u32) -> Outcome {
    // SAFETY: plain numbers.
    check(unsafe { libc::fchown(descriptor, uid, gid) }.into()).map(drop)
}

pub(super) fn unlink(path: &CStr) -> Outcome {
    // SAFETY: NUL-terminated path.
    check(unsafe { libc::unlink(path.as_ptr()) }.into()).map(drop)
}

pub(super) fn open(path: &CStr, flags: libc::c_int, mode: libc::mode_t) -> Outcome<RawFd> {
    // SAFETY: NUL-terminated path.
    check(
        unsafe {
            libc::open(
                path.as_ptr(),
                flags | libc::O_CLOEXEC,
                libc::c_uint::from(mode),
            )
        }
        .into(),
    )
    .map(|fd| fd as RawFd)
}

pub(super) fn close(descriptor: RawFd) {
    // SAFETY: the caller owns the descriptor.
    unsafe { libc::close(descriptor) };
}

pub(super) fn device(path: &CStr, major: u32, minor: u32) -> Outcome {
    // SAFETY: NUL-terminated path.
    let result = unsafe {
        libc::mknod(
            path.as_ptr(),
            libc::S_IFCHR | 0o666,
            libc::makedev(major, minor),
        )
    };
    check(result.into()).map(drop)
}

pub(super) fn symlink(target: &CStr, path: &CStr) -> Outcome {
    // SAFETY: NUL-terminated strings.
    check(unsafe { libc::symlink(target.as_ptr(), path.as_ptr()) }.into()).map(drop)
}

pub(super) fn set_hostname(name: &[u8]) -> Outcome {
    // SAFETY: the slice has the length that is given.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }.into()).map(drop)
}

pub(super) fn umask(mask: libc::mode_t) {
    // SAFETY: plain number.
    unsafe { libc::umask(mask) };
}

pub(super) fn duplicate_to(descriptor: RawFd, number: RawFd) -> Outcome {
    // SAFETY: plain numbers.
    check(unsafe { libc::dup2(descriptor, number) }.into()).map(drop)
}

pub(super) fn new_session() -> Outcome {
    // SAFETY: no arguments.
    check(unsafe { libc::setsid() }.into()).map(drop)
}

/// A fresh anonymous session key ring. A kernel without key rings has nothing to share.
pub(super) fn new_session_keyring() -> Outcome {
    // SAFETY: a null name asks for an anonymous key ring.
    match check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0) })
    {
        Ok(_) | Err(libc::ENOSYS) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Mark every descriptor from `first` to `last` close-on-exec.
pub(super) fn close_on_exec_from(first: libc::c_uint) -> Outcome {
    // SAFETY: plain numbers.
    check(unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            libc::c_uint::MAX,
            CLOSE_RANGE_CLOEXEC,
        )
    })
    .map(drop)
}

/// Close every descriptor in the inclusive range; an empty range does nothing.
pub(super) fn close_between(first: libc::c_uint, last: libc::c_uint) -> Outcome {
    if first > last {
        return Ok(());
    }
    // SAFETY: plain numbers; the caller keeps none of these.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}

pub(super) fn prctl(option: libc::c_int, value: libc::c_ulong) -> Outcome {
    // SAFETY: the options used here take numbers only.
    check(unsafe { libc::prctl(option, value, 0, 0, 0) }.into()).map(drop)
}

/// Default disposition for every signal, nothing blocked.
pub(super) fn default_signals() {
    // The C library's sigaction refuses the two signals that it keeps for itself, and one that was inherited as
    // ignored would stay so; hence the system call. Its structure is four words at most, its set 8 bytes.
    let action = [0_u64; 4];
    // SAFETY: a zeroed action is SIG_DFL without flags and outlives the call; refusals (SIGKILL, SIGSTOP) do not
    // matter.
    unsafe {
        for signal in 1..=64 {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                action.as_ptr(),
                ptr::null_mut::<u64>(),
                8,
            );
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut());
    }
}

/// A descriptor that delivers every (blocked) signal.
pub(super) fn signal_descriptor() -> Outcome<RawFd> {
    let all = all_signals();
    // SAFETY: the set is valid.
    check(unsafe { libc::signalfd(-1, &all, libc::SFD_CLOEXEC) }.into()).map(|fd| fd as RawFd)
}

/// The next signal of `descriptor`.
pub(super) fn next_signal(descriptor: RawFd) -> Option<i32> {
    let mut info = [0u8; std::mem::size_of::<libc::signalfd_siginfo>()];
    if read_full(descriptor, &mut info) != info.len() {
        return None;
    }
    // ssi_signo is the structure's first member.
    Some(u32::from_ne_bytes([info[0], info[1], info[2], info[3]]) as i32)
}

/// Wait until a signal is there or the other end of `pipe` is closed; true in the second case.
pub(super) fn wait_for_signal_or_end(signals: RawFd, pipe: RawFd) -> bool {
    let mut watched = [
        libc::pollfd {
            fd: signals,
            events: libc::POLLIN,
            revents: 0,
        },
        libc::pollfd {
            fd: pipe,
            events: libc::POLLIN,
            revents: 0,
        },
    ];
    // SAFETY: two valid entries; no time limit.
    unsafe { libc::poll(watched.as_mut_ptr(), 2, -1) };
    watched[1].revents != 0
}

/// Reap one ended child: its pid and raw status, or None when there is none now.
pub(super) fn reap_one() -> Option<(i32, i32)> {
    let mut status = 0;
    // SAFETY: `status` is a valid place.
    let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG | libc::__WALL) };
    (pid > 0).then_some((pid, status))
}

/// Signal a process group, or the process alone while it has none yet.
pub(super) fn signal_group(pid: i32, signal: i32) {
    // SAFETY: plain numbers.
    unsafe {
        if libc::kill(-pid, signal) != 0 {
            libc::kill(pid, signal);
        }
    }
}

pub(super) fn set_groups(groups: &[u32]) -> Outcome {
    // SAFETY: the slice has the length that is given. The raw call changes this process, which has one thread.
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) }).map(drop)
}

pub(super) fn set_gid(gid: u32) -> Outcome {
    // SAFETY: plain numbers.
    check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) }).map(drop)
}

pub(super) fn set_uid(uid: u32) -> Outcome {
    // SAFETY: plain numbers.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }).map(drop)
}

/// Whether real, effective and saved ids are these.
pub(super) fn ids_are(uid: u32, gid: u32) -> bool {
    let (mut users, mut groups) = ([u32::MAX; 3], [u32::MAX; 3]);
    // SAFETY: six valid places.
    let result = unsafe {
        libc::getresuid(&mut users[0], &mut users[1], &mut users[2])
            | libc::getresgid(&mut groups[0], &mut groups[1], &mut groups[2])
    };
    result == 0 && users == [uid; 3] && groups == [gid; 3]
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: libc::c_int,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// Keep only the capabilities in `mask` (bit n is capability n) among those held; nothing is inheritable.
pub(super) fn limit_capabilities(mask: u64) -> Outcome {
    let header = CapHeader {
        version: CAPABILITY_VERSION_3,
        pid: 0,
    };
    let mut data = [CapData::default(); 2];
    // SAFETY: version 3 takes one header and two data records.
    check(unsafe { libc::syscall(libc::SYS_capget, &header, data.as_mut_ptr()) })?;
    for (half, record) in data.iter_mut().enumerate() {
        let keep = (mask >> (32 * half)) as u32 & record.permitted;
        *record = CapData {
            effective: keep,
            permitted: keep,
            inheritable: 0,
        };
    }
    // SAFETY: as above.
    check(unsafe { libc::syscall(libc::SYS_capset, &header, data.as_ptr()) }).map(drop)
}

/// Take everything outside `mask` out of the bounding set.
pub(super) fn limit_bounding_set(mask: u64) -> Outcome {
    for capability in 0..64 {
        if mask >> capability & 1 == 1 {
            continue;
        }
        match prctl(libc::PR_CAPBSET_DROP, capability) {
            Ok(()) => {}
            Err(libc::EINVAL) => break, // past the kernel's last capability
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Replace the program; returns only the reason why not.
pub(super) fn exec(
    program: &CStr,
    argv: *const *const libc::c_char,
    env: *const *const libc::c_char,
) -> i32 {
    // SAFETY: the caller's arrays are NULL-terminated arrays of NUL-terminated strings.
    unsafe { libc::execve(program.as_ptr(), argv, env) };
    errno()
}
