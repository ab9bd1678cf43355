//! Restricts processes beyond their user's rights: landlock rulesets (`landlock(7)`, Linux 6.2) and
//! seccomp filters (`seccomp(2)`), prepared for a child that can only make system calls.

mod paths;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use landlock::{
    ABI, AccessFs, BitFlags, CompatLevel, Compatible as _, PathBeneath, Ruleset, RulesetAttr as _,
};
use landlock::{RulesetCreated, RulesetCreatedAttr as _};
use libc::c_long;
use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

use crate::safe_path::Held;

pub use paths::{Paths, Resolved};

/// The first landlock ABI that covers every change of a file; older ones do not restrict
/// `truncate(2)`. Linux 6.2.
const FULL_ABI: u32 = 3;
/// `LANDLOCK_CREATE_RULESET_VERSION`.
const VERSION_FLAG: u32 = 1;
/// Harmless devices that programs need; every ruleset allows them.
const DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];
/// System call numbers with this bit belong to the x32 ABI, whose calls do the same as the usual
/// ones.
#[cfg(target_arch = "x86_64")]
const X32_BIT: u32 = 0x4000_0000;
/// `open_tree_attr(2)`, Linux 6.15; the same number on all architectures.
const OPEN_TREE_ATTR: c_long = 467;
/// Flags by which `unshare(2)` and `clone(2)` create namespaces.
const NAMESPACES: [u64; 8] = [
    libc::CLONE_NEWNS as u64,
    libc::CLONE_NEWCGROUP as u64,
    libc::CLONE_NEWUTS as u64,
    libc::CLONE_NEWIPC as u64,
    libc::CLONE_NEWUSER as u64,
    libc::CLONE_NEWPID as u64,
    libc::CLONE_NEWNET as u64,
    // `CLONE_NEWTIME`, for `unshare` only; in `clone` this bit is part of the exit signal.
    0x80,
];

/// A group of system calls that can be denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum SystemCalls {
    /// Tracing other processes, reading their memory, and changing their limits.
    Debug,
    /// `io_uring`.
    IoUring,
    /// The kernel itself: BPF, modules, `userfaultfd`, kexec, reboot, swap, clocks, accounting, I/O
    /// ports.
    Kernel,
    /// The kernel's keyrings.
    Keyring,
    /// Mounts and changes of the root directory.
    Mount,
    /// Creating and entering namespaces.
    Namespaces,
}

impl SystemCalls {
    /// All groups.
    pub const ALL: [SystemCalls; 6] = [
        SystemCalls::Debug,
        SystemCalls::IoUring,
        SystemCalls::Kernel,
        SystemCalls::Keyring,
        SystemCalls::Mount,
        SystemCalls::Namespaces,
    ];

    /// Returns the calls that are denied whatever their arguments are.
    fn numbers(self) -> &'static [c_long] {
        match self {
            SystemCalls::Debug => &[
                libc::SYS_kcmp,
                libc::SYS_perf_event_open,
                libc::SYS_pidfd_getfd,
                libc::SYS_process_vm_readv,
                libc::SYS_process_vm_writev,
                libc::SYS_ptrace,
            ],
            SystemCalls::IoUring => {
                &[libc::SYS_io_uring_enter, libc::SYS_io_uring_register, libc::SYS_io_uring_setup]
            }
            SystemCalls::Kernel => &[
                libc::SYS_acct,
                libc::SYS_adjtimex,
                libc::SYS_bpf,
                libc::SYS_clock_adjtime,
                libc::SYS_clock_settime,
                libc::SYS_delete_module,
                libc::SYS_finit_module,
                libc::SYS_init_module,
                #[cfg(target_arch = "x86_64")]
                libc::SYS_ioperm,
                #[cfg(target_arch = "x86_64")]
                libc::SYS_iopl,
                // musl's definitions for ARM lack it.
                #[cfg(any(target_arch = "x86_64", target_env = "gnu"))]
                libc::SYS_kexec_file_load,
                libc::SYS_kexec_load,
                libc::SYS_quotactl,
                libc::SYS_reboot,
                libc::SYS_settimeofday,
                libc::SYS_swapoff,
                libc::SYS_swapon,
                libc::SYS_syslog,
                libc::SYS_userfaultfd,
            ],
            SystemCalls::Keyring => &[libc::SYS_add_key, libc::SYS_keyctl, libc::SYS_request_key],
            SystemCalls::Mount => &[
                libc::SYS_chroot,
                libc::SYS_fsconfig,
                libc::SYS_fsmount,
                libc::SYS_fsopen,
                libc::SYS_fspick,
                libc::SYS_mount,
                libc::SYS_mount_setattr,
                libc::SYS_move_mount,
                libc::SYS_open_tree,
                OPEN_TREE_ATTR,
                libc::SYS_pivot_root,
                libc::SYS_umount2,
            ],
            SystemCalls::Namespaces => &[libc::SYS_setns],
        }
    }
}

/// The reason why a sandbox cannot be prepared.
#[derive(Debug)]
pub enum SandboxError {
    /// A path of the sandbox.
    Path(PathBuf, io::Error),
    /// A restriction that the kernel does not support, in words.
    Unsupported(String),
    /// Another step, in words.
    System(&'static str, io::Error),
}

impl fmt::Display for SandboxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SandboxError::Path(path, e) => write!(f, "{}: {e}", path.display()),
            SandboxError::Unsupported(what) => f.write_str(what),
            SandboxError::System(doing, e) => write!(f, "cannot {doing}: {e}"),
        }
    }
}

impl Error for SandboxError {}

/// Returns the system error among the sources of an error; one of the kind `Other` if there is
/// none.
fn system(e: &(dyn Error + 'static)) -> io::Error {
    let mut cause = Some(e);
    while let Some(e) = cause {
        if let Some(number) = e.downcast_ref().and_then(io::Error::raw_os_error) {
            return io::Error::from_raw_os_error(number);
        }
        cause = e.source();
    }
    io::Error::other(e.to_string())
}

/// A sandbox that is ready to be entered. Clones share its kernel objects.
#[derive(Debug, Clone, Default)]
pub struct Sandbox {
    ruleset: Option<Arc<OwnedFd>>,
    filters: Arc<[Box<[libc::sock_filter]>]>,
}

impl Sandbox {
    /// Whether it restricts nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ruleset.is_none() && self.filters.is_empty()
    }

    /// Whether access to files is restricted.
    #[must_use]
    pub fn restricts_files(&self) -> bool {
        self.ruleset.is_some()
    }

    /// Returns the descriptor that stands for the restrictions of access to files.
    #[must_use]
    pub fn ruleset(&self) -> Option<&OwnedFd> {
        self.ruleset.as_deref()
    }

    /// Returns a sandbox that restricts access to files as another one did that had this
    /// [ruleset](Sandbox::ruleset).
    #[must_use]
    pub fn of_ruleset(ruleset: OwnedFd) -> Sandbox {
        Sandbox { ruleset: Some(Arc::new(ruleset)), ..Sandbox::default() }
    }

    /// Restricts access to files. Files below `read` can be read and executed, files below `write`
    /// can be read and changed. With `read` only, nothing can be changed; with `write` only,
    /// everything can be read. With `best_effort`, restrictions that the kernel does not support
    /// are left out.
    ///
    /// Paths are resolved as [`Paths::resolve`] says. A file system may take 10 s to answer for each
    /// path.
    ///
    /// # Errors
    /// A path that does not exist, or that leads through one of `write` ([`Paths`]); a restriction
    /// that the kernel does not support.
    pub fn files(
        mut self,
        read: Option<&[PathBuf]>,
        write: Option<&[PathBuf]>,
        best_effort: bool,
    ) -> Result<Sandbox, SandboxError> {
        if read.is_none() && write.is_none() {
            return Ok(self);
        }
        let abi = landlock_abi();
        if let Some(missing) = missing(&abi)
            && !best_effort
        {
            return Err(SandboxError::Unsupported(missing));
        }
        let abi = match abi {
            Err(_) | Ok(0) => return Ok(self),
            Ok(1) => ABI::V1,
            Ok(2) => ABI::V2,
            Ok(_) => ABI::V3,
        };
        let (reading, writing) = (AccessFs::from_read(abi), AccessFs::from_write(abi));
        let handled = if read.is_some() { reading | writing } else { writing };
        let made = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(handled)
            .and_then(Ruleset::create)
            .map_err(|e| SandboxError::System("make a landlock ruleset", system(&e)))?;
        let mut rules = Rules { made, handled, abi };
        for path in DEVICES {
            match rules.allow(Path::new(path), BitFlags::from(AccessFs::ReadFile) | writing) {
                Err(SandboxError::Path(_, e)) if e.kind() == io::ErrorKind::NotFound => {}
                result => result?,
            }
        }
        let paths = Paths::resolve(read.unwrap_or_default(), write.unwrap_or_default());
        for (path, resolved) in paths.read {
            if let Resolved::Through(above) = &resolved {
                return Err(leads_through(path, above));
            }
            rules.add(path, resolved, reading)?;
        }
        for (path, resolved) in paths.write {
            match &resolved {
                Resolved::Through(above) if *above == path => {
                    return Err(leads_through(path, above));
                }
                // A path below another one is allowed with it. Skip it, because whoever may write
                // there could replace it.
                Resolved::Through(_) => {}
                _ => rules.add(path, resolved, AccessFs::ReadFile | AccessFs::ReadDir | writing)?,
            }
        }
        self.ruleset = Option::<OwnedFd>::from(rules.made).map(Arc::new);
        Ok(self)
    }

    /// Denies system calls, which then fail with `EPERM`. Calls of other ABIs kill the process
    /// (32-bit) or fail with `ENOSYS` (x32).
    ///
    /// # Errors
    /// If the kernel does not support seccomp filters.
    pub fn deny(
        mut self,
        groups: &BTreeSet<SystemCalls>,
        best_effort: bool,
    ) -> Result<Sandbox, SandboxError> {
        if groups.is_empty() {
            return Ok(self);
        }
        if let Some(missing) = seccomp_missing() {
            return if best_effort { Ok(self) } else { Err(SandboxError::Unsupported(missing)) };
        }
        let cannot = |e: seccompiler::BackendError| {
            SandboxError::System("make a seccomp filter", system(&e))
        };
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
        rules.extend(
            groups.iter().flat_map(|group| group.numbers()).map(|number| (*number, Vec::new())),
        );
        let mut programs = Vec::new();
        if groups.contains(&SystemCalls::Debug) {
            rules.insert(libc::SYS_prlimit64, of_others().map_err(cannot)?);
        }
        if groups.contains(&SystemCalls::Namespaces) {
            rules.insert(libc::SYS_unshare, with_any(&NAMESPACES).map_err(cannot)?);
            rules.insert(libc::SYS_clone, with_any(&NAMESPACES[..7]).map_err(cannot)?);
            // A filter cannot read the flags of `clone3`, which are in memory. With `ENOSYS`, C
            // libraries fall back to `clone`.
            programs.push(
                program([(libc::SYS_clone3, Vec::new())].into(), libc::ENOSYS).map_err(cannot)?,
            );
        }
        programs.push(program(rules, libc::EPERM).map_err(cannot)?);
        self.filters = programs.into();
        Ok(self)
    }

    /// Restricts the file access of the calling thread and of everything that it starts. Cannot be
    /// undone.
    ///
    /// # Errors
    /// `E2BIG` if the thread has 16 landlock rulesets already.
    pub(crate) fn restrict_files_of_thread(&self) -> io::Result<()> {
        let Some(ruleset) = &self.ruleset else { return Ok(()) };
        // SAFETY: both calls restrict the calling thread only; `ruleset` is open during the call.
        let done = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) == 0
        };
        if done { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Returns a copy of the ruleset's descriptor with a number above `number`, the highest that a
    /// child gets.
    pub(crate) fn ruleset_above(&self, number: RawFd) -> io::Result<Option<OwnedFd>> {
        let copy =
            |ruleset: &Arc<OwnedFd>| rustix::io::fcntl_dupfd_cloexec(ruleset.as_fd(), number + 1);
        Ok(self.ruleset.as_ref().map(copy).transpose()?)
    }

    /// Returns the filters, in the order of installation, as `struct sock_fprog`. They point into
    /// `self`.
    pub(crate) fn programs(&self) -> Vec<libc::sock_fprog> {
        let program = |filter: &[libc::sock_filter]| libc::sock_fprog {
            // `SeccompFilter` allows at most 4096 instructions (`BPF_MAXINSNS`).
            len: u16::try_from(filter.len()).unwrap_or(u16::MAX),
            filter: filter.as_ptr().cast_mut(),
        };
        self.filters.iter().map(|filter| program(filter)).collect()
    }
}

/// A ruleset under construction.
struct Rules {
    made: RulesetCreated,
    handled: BitFlags<AccessFs>,
    abi: ABI,
}

impl Rules {
    fn allow(&mut self, path: &Path, access: BitFlags<AccessFs>) -> Result<(), SandboxError> {
        let mut alone = Paths::resolve(&[path.to_owned()], &[]);
        match alone.read.pop() {
            Some((path, resolved)) => self.add(path, resolved, access),
            None => Ok(()),
        }
    }

    fn add(
        &mut self,
        path: PathBuf,
        resolved: Resolved,
        access: BitFlags<AccessFs>,
    ) -> Result<(), SandboxError> {
        let Held { fd, found, .. } = match resolved {
            Resolved::Held(held) => *held,
            Resolved::Through(above) => return Err(leads_through(path, &above)),
            Resolved::Failed(e) => return Err(SandboxError::Path(path, e)),
        };
        let fits = if found.is_dir() { BitFlags::all() } else { AccessFs::from_file(self.abi) };
        let access = access & self.handled & fits;
        if !access.is_empty() {
            (&mut self.made)
                .add_rule(PathBeneath::new(fd, access))
                .map_err(|e| SandboxError::Path(path, system(&e)))?;
        }
        Ok(())
    }
}

/// Returns the error for a path that leads through a writable one, which could become, for example,
/// a link to `/`, to be allowed from the next start on.
fn leads_through(path: PathBuf, above: &Path) -> SandboxError {
    let reason = format!(
        "it leads through {}, and whoever may change that could put anything else there",
        above.display()
    );
    SandboxError::Path(path, io::Error::new(io::ErrorKind::InvalidInput, reason))
}

/// Returns rules that match calls whose first argument has any of these flags.
fn with_any(flags: &[u64]) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let rule = |flag: &u64| {
        let condition = SeccompCondition::new(
            0,
            SeccompCmpArgLen::Qword,
            SeccompCmpOp::MaskedEq(*flag),
            *flag,
        )?;
        SeccompRule::new(vec![condition])
    };
    flags.iter().map(rule).collect()
}

/// Returns a rule that matches calls whose first argument names a process. C libraries pass 0 for
/// the caller, which stays allowed.
fn of_others() -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    // The kernel takes the argument as an `int`, so the upper half must be ignored.
    let is_named = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, 0)?;
    Ok(vec![SeccompRule::new(vec![is_named])?])
}

/// Compiles a filter that fails these calls with `errno` and allows all others.
fn program(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    errno: i32,
) -> Result<Box<[libc::sock_filter]>, seccompiler::BackendError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(errno.unsigned_abs()),
        arch,
    )?;
    let compiled = seccompiler::BpfProgram::try_from(filter)?;
    let same = compiled.into_iter().map(|one| libc::sock_filter {
        code: one.code,
        jt: one.jt,
        jf: one.jf,
        k: one.k,
    });
    Ok(without_x32().into_iter().chain(same).collect())
}

/// Returns the first instructions of a filter: they fail calls of the x32 ABI, whose numbers the
/// rules do not match, with `ENOSYS`.
#[cfg(target_arch = "x86_64")]
fn without_x32() -> Vec<libc::sock_filter> {
    let (load, jump, answer) = (
        libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
        libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K,
        libc::BPF_RET | libc::BPF_K,
    );
    let step = |code: u32, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf, k };
    // The call's number is the first field of `struct seccomp_data`.
    vec![
        step(load, 0, 0),
        step(jump, 1, X32_BIT),
        step(answer, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs()),
    ]
}

#[cfg(not(target_arch = "x86_64"))]
fn without_x32() -> Vec<libc::sock_filter> {
    Vec::new()
}

/// Returns the kernel's landlock ABI version.
fn landlock_abi() -> io::Result<u32> {
    // SAFETY: with `LANDLOCK_CREATE_RULESET_VERSION` the attributes must be null and of length 0;
    // the call creates nothing and returns the version.
    let abi = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0usize,
            VERSION_FLAG,
        )
    };
    u32::try_from(abi).map_err(|_| io::Error::last_os_error())
}

fn missing(abi: &io::Result<u32>) -> Option<String> {
    match abi {
        Ok(abi) if *abi >= FULL_ABI => None,
        Ok(abi) => Some(format!(
            "this kernel's landlock (ABI {abi}) does not keep a process from truncating files; that needs ABI {FULL_ABI}, Linux 6.2"
        )),
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Some(
            "landlock, which restricts access to files, is turned off in this kernel (its parameter `lsm=` leaves it out)".into(),
        ),
        Err(e) => Some(format!("landlock, which restricts access to files, cannot be used here ({e}); it needs Linux 6.2")),
    }
}

/// Returns what this kernel lacks to restrict file access in full, in words; `None` if nothing.
#[must_use]
pub fn landlock_missing() -> Option<String> {
    missing(&landlock_abi())
}

/// Returns what this kernel, or the filter compiler for this architecture, lacks to deny system
/// calls, in words; `None` if nothing.
#[must_use]
pub fn seccomp_missing() -> Option<String> {
    if TargetArch::try_from(std::env::consts::ARCH).is_err() {
        return Some(format!("system calls of {} cannot be filtered", std::env::consts::ARCH));
    }
    let action = libc::SECCOMP_RET_ERRNO;
    // SAFETY: `SECCOMP_GET_ACTION_AVAIL` reads a `u32` through the pointer, which is valid for the
    // call, and changes nothing.
    let known = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action)
    };
    (known != 0).then(|| {
        format!(
            "seccomp, which filters system calls, cannot be used here ({})",
            io::Error::last_os_error()
        )
    })
}
