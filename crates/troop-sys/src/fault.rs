//! Points at which a test has this process die, as if it had been killed there. Release builds have
//! none.

/// Ends this process if the variable `TROOP_FAULT` says `POINT:N:FILE`, this point is passed for the Nth
/// time, and the file does not exist. The file is created then, so that it happens once; without a name it
/// happens each time, and with `!` before it each time until the file exists. It is ended by SIGKILL, or by
/// the signal with the number in `TROOP_FAULT_SIGNAL`.
#[inline]
pub fn point(name: &str) {
    #[cfg(debug_assertions)]
    seam::pass(name);
    #[cfg(not(debug_assertions))]
    let _ = name;
}

#[cfg(debug_assertions)]
mod seam {
    use std::fs::File;
    use std::path::{Path, PathBuf};
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    struct Fault {
        point: String,
        nth: u32,
        once: PathBuf,
        signal: i32,
    }

    static FAULT: OnceLock<Option<Fault>> = OnceLock::new();
    static PASSED: AtomicU32 = AtomicU32::new(0);

    fn fault() -> Option<Fault> {
        let value = std::env::var("TROOP_FAULT").ok()?;
        let (point, rest) = value.split_once(':')?;
        let (nth, once) = rest.split_once(':')?;
        let signal = std::env::var("TROOP_FAULT_SIGNAL").ok().and_then(|text| text.parse().ok());
        let (point, nth) = (point.to_owned(), nth.parse().ok()?);
        Some(Fault { point, nth, once: once.into(), signal: signal.unwrap_or(libc::SIGKILL) })
    }

    fn is_wanted(once: &Path) -> bool {
        match once.to_str().and_then(|name| name.strip_prefix('!')) {
            Some(until) => !Path::new(until).exists(),
            None => once.as_os_str().is_empty() || File::create_new(once).is_ok(),
        }
    }

    pub(super) fn pass(name: &str) {
        let Some(fault) = FAULT.get_or_init(fault).as_ref().filter(|fault| fault.point == name)
        else {
            return;
        };
        if PASSED.fetch_add(1, Ordering::Relaxed) + 1 == fault.nth && is_wanted(&fault.once) {
            // SAFETY: the call has no pointers.
            unsafe { libc::kill(libc::getpid(), fault.signal) };
        }
    }
}
