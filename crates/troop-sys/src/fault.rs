//! Points at which a test has this process die, as if it had been killed there. Release builds have
//! none.

/// Ends this process by SIGKILL if the variable `TROOP_FAULT` says `POINT:N:FILE`, this point is passed
/// for the Nth time, and the file does not exist. The file is created then, so that it happens once;
/// without a name it happens each time.
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
    use std::path::PathBuf;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    struct Fault {
        point: String,
        nth: u32,
        once: PathBuf,
    }

    static FAULT: OnceLock<Option<Fault>> = OnceLock::new();
    static PASSED: AtomicU32 = AtomicU32::new(0);

    fn fault() -> Option<Fault> {
        let value = std::env::var("TROOP_FAULT").ok()?;
        let (point, rest) = value.split_once(':')?;
        let (nth, once) = rest.split_once(':')?;
        Some(Fault { point: point.to_owned(), nth: nth.parse().ok()?, once: once.into() })
    }

    pub(super) fn pass(name: &str) {
        let Some(fault) = FAULT.get_or_init(fault).as_ref().filter(|fault| fault.point == name)
        else {
            return;
        };
        if PASSED.fetch_add(1, Ordering::Relaxed) + 1 == fault.nth
            && (fault.once.as_os_str().is_empty() || File::create_new(&fault.once).is_ok())
        {
            // SAFETY: the call has no pointers.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        }
    }
}
