//! What a process is kept from beyond its user's rights: landlock rulesets and seccomp filters,
//! made ready here for a child that can only make system calls.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use landlock::{
    ABI, AccessFs, BitFlags, CompatLevel, Compatible as _, PathBeneath, Ruleset, RulesetAttr as _,
};
use landlock::{RulesetCreated, RulesetCreatedAttr as _};
use libc::c_long;
use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

use crate::safe_path::{Safety, hold};
use crate::within::within;

/// The first version of landlock's interface that covers every way to change a file; older ones let
/// anybody truncate (`landlock(7)`).
const FULL_ABI: u32 = 3;
/// `LANDLOCK_CREATE_RULESET_VERSION`.
const VERSION_FLAG: u32 = 1;
/// Devices that every program may need, and none can do harm with.
const DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];
/// How long the file system of a path may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// From here on the numbers are those of the other x86 ABI, x32, which are the same calls once
/// more.
#[cfg(target_arch = "x86_64")]
const X32_BIT: u32 = 0x4000_0000;
/// `open_tree_attr(2)`, from Linux 6.15 on; one number for all architectures.
const OPEN_TREE_ATTR: c_long = 467;
/// What `unshare(2)` and `clone(2)` make new namespaces by.
const NAMESPACES: [u64; 8] = [
    libc::CLONE_NEWNS as u64,
    libc::CLONE_NEWCGROUP as u64,
    libc::CLONE_NEWUTS as u64,
    libc::CLONE_NEWIPC as u64,
    libc::CLONE_NEWUSER as u64,
    libc::CLONE_NEWPID as u64,
    libc::CLONE_NEWNET as u64,
    // `CLONE_NEWTIME`, for `unshare` only: `clone` has a signal's number there.
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
    /// What concerns the kernel itself: BPF, modules, `userfaultfd`, kexec, reboot, swap, clocks,
    /// accounting, I/O ports.
    Kernel,
    /// The kernel's keyrings.
    Keyring,
    /// Mounts, and other roots.
    Mount,
    /// New namespaces, and those of others.
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

    /// The calls that are denied whatever their arguments are.
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

/// Why a sandbox cannot be had.
#[derive(Debug)]
pub enum SandboxError {
    /// A path that it names.
    Path(PathBuf, io::Error),
    /// The kernel cannot do a part of it, in words.
    Unsupported(String),
    /// Anything else.
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

/// The system's error in another one, if there is one in it.
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

/// A sandbox that is ready to be applied. Clones share what the kernel has of it.
#[derive(Debug, Clone, Default)]
pub struct Sandbox {
    ruleset: Option<Arc<OwnedFd>>,
    filters: Arc<[Box<[libc::sock_filter]>]>,
}

impl Sandbox {
    /// Whether it keeps from nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ruleset.is_none() && self.filters.is_empty()
    }

    /// Whether access to files is restricted.
    #[must_use]
    pub fn restricts_files(&self) -> bool {
        self.ruleset.is_some()
    }

    /// Restricts access to files: only what is below `read` can be read and executed, if that is
    /// given, and only what is below `write` can be read and changed. `read` alone keeps from all
    /// changes, `write` alone leaves everything readable. With `best_effort`, what the kernel does
    /// not know is left out.
    ///
    /// If this process is root, no symbolic link is followed that somebody else could have put
    /// there.
    ///
    /// # Errors
    /// A path that is not there, or one of `read` that is below one of `write`; what the kernel
    /// does not know.
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
        for path in read.unwrap_or_default() {
            if let Some(above) = write
                .unwrap_or_default()
                .iter()
                .find(|above| path != *above && path.starts_with(above))
            {
                // A link, say, that leads to everything from the next start on.
                let reason =
                    format!("whoever may change {} could put anything else there", above.display());
                return Err(SandboxError::Path(
                    path.clone(),
                    io::Error::new(io::ErrorKind::InvalidInput, reason),
                ));
            }
            rules.allow(path, reading)?;
        }
        let write = write.unwrap_or_default();
        // What is below another one is allowed with it, and could be exchanged like the rest.
        for path in write
            .iter()
            .filter(|path| !write.iter().any(|above| path != &above && path.starts_with(above)))
        {
            rules.allow(path, AccessFs::ReadFile | AccessFs::ReadDir | writing)?;
        }
        self.ruleset = Option::<OwnedFd>::from(rules.made).map(Arc::new);
        Ok(self)
    }

    /// Denies system calls: they fail with `EPERM`. The calls of other ABIs that the kernel knows
    /// end the process (32 bits) or fail with `ENOSYS` (x32).
    ///
    /// # Errors
    /// What the kernel does not know.
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
            // Its flags are in memory, where no filter can look; C libraries fall back to `clone`.
            programs.push(
                program([(libc::SYS_clone3, Vec::new())].into(), libc::ENOSYS).map_err(cannot)?,
            );
        }
        programs.push(program(rules, libc::EPERM).map_err(cannot)?);
        self.filters = programs.into();
        Ok(self)
    }

    /// Restricts the calling thread, for good, and whatever it starts, to the files that the
    /// sandbox leaves.
    ///
    /// # Errors
    /// `E2BIG` if it is restricted too often already.
    pub(crate) fn restrict_files_of_thread(&self) -> io::Result<()> {
        let Some(ruleset) = &self.ruleset else { return Ok(()) };
        // SAFETY: system calls that change this thread alone, with a descriptor that is held.
        let done = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) == 0
        };
        if done { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// A copy of the ruleset's descriptor above all those that a child gets.
    pub(crate) fn ruleset_above(&self, number: RawFd) -> io::Result<Option<OwnedFd>> {
        let copy =
            |ruleset: &Arc<OwnedFd>| rustix::io::fcntl_dupfd_cloexec(ruleset.as_fd(), number + 1);
        Ok(self.ruleset.as_ref().map(copy).transpose()?)
    }

    /// The filters as the kernel takes them, in order. They point into this.
    pub(crate) fn programs(&self) -> Vec<libc::sock_fprog> {
        let program = |filter: &[libc::sock_filter]| libc::sock_fprog {
            // At most 4096, which the making has checked.
            len: u16::try_from(filter.len()).unwrap_or(u16::MAX),
            filter: filter.as_ptr().cast_mut(),
        };
        self.filters.iter().map(|filter| program(filter)).collect()
    }
}

/// A ruleset that is being made.
struct Rules {
    made: RulesetCreated,
    handled: BitFlags<AccessFs>,
    abi: ABI,
}

impl Rules {
    fn allow(&mut self, path: &Path, access: BitFlags<AccessFs>) -> Result<(), SandboxError> {
        let safety =
            if rustix::process::geteuid().is_root() { Safety::Links } else { Safety::Rights };
        let named = path.to_owned();
        let (held, found) = within(ANSWER_TIMEOUT, move || hold(&named, safety))
            .map_err(|e| SandboxError::Path(path.to_owned(), e))?;
        let fits = if found.is_dir() { BitFlags::all() } else { AccessFs::from_file(self.abi) };
        let access = access & self.handled & fits;
        if !access.is_empty() {
            (&mut self.made)
                .add_rule(PathBeneath::new(held, access))
                .map_err(|e| SandboxError::Path(path.to_owned(), system(&e)))?;
        }
        Ok(())
    }
}

/// Rules that fit calls whose first argument has any of these flags.
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

/// A rule that fits calls whose first argument is another process, or the caller's by its number,
/// which no C library uses: 0 is the caller.
fn of_others() -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    // The kernel reads an `int`.
    let is_named = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, 0)?;
    Ok(vec![SeccompRule::new(vec![is_named])?])
}

/// A program that answers these calls with an error and allows all others.
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

/// The beginning of a program that denies the x32 ABI, by whose numbers the calls are not
/// recognised.
#[cfg(target_arch = "x86_64")]
fn without_x32() -> Vec<libc::sock_filter> {
    let (load, jump, answer) = (
        libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
        libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K,
        libc::BPF_RET | libc::BPF_K,
    );
    let step = |code: u32, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf, k };
    // The number is the first field of `seccomp_data`.
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

/// The version of landlock's interface.
fn landlock_abi() -> io::Result<u32> {
    // SAFETY: with this flag it takes no attributes (null, length 0), makes nothing, and answers.
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

/// What this kernel lacks to restrict access to files in full, in words.
#[must_use]
pub fn landlock_missing() -> Option<String> {
    missing(&landlock_abi())
}

/// What this kernel, or troop on this machine, lacks to deny system calls, in words.
#[must_use]
pub fn seccomp_missing() -> Option<String> {
    if TargetArch::try_from(std::env::consts::ARCH).is_err() {
        return Some(format!("system calls of {} cannot be filtered", std::env::consts::ARCH));
    }
    let action = libc::SECCOMP_RET_ERRNO;
    // SAFETY: asks whether an action is known; the kernel reads it, a `u32`, through the pointer.
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
