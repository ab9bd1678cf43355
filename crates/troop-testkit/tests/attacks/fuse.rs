//! File systems whose server is hostile (FUSE).

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A file system for all users; processes that wait for it wait until this is dropped.
pub(super) struct Mount {
    pub(super) at: PathBuf,
    /// With it the connection ends, and so does all waiting.
    served_by: Option<File>,
    server: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
    /// How many closes are not answered.
    closes: Arc<AtomicUsize>,
}

/// Whose closes of files are not answered.
#[derive(Clone, Copy, PartialEq)]
enum Unanswered {
    /// Closes of this process.
    OfThisProcess,
    /// All closes.
    All,
    /// What is written, which is when the last descriptor is dropped.
    Writes,
}

impl Mount {
    /// Returns a directory whose file system never answers. `None`, with a message, where none can
    /// be mounted.
    pub(super) fn dead(test: &str, at: &Path) -> Option<Mount> {
        std::fs::create_dir(at).unwrap();
        Mount::new(test, at, "40000")
    }

    /// A file that everybody can open, and that this process cannot close.
    pub(super) fn unclosable(test: &str, at: &Path) -> Option<Mount> {
        File::create(at).unwrap();
        Mount::new(test, at, "100666")?.served(0o100_666, Unanswered::OfThisProcess)
    }

    /// A file that can be opened, and whose close never ends.
    pub(super) fn unclosable_by_all(test: &str, at: &Path) -> Option<Mount> {
        File::create(at).unwrap();
        Mount::new(test, at, "100666")?.served(0o100_666, Unanswered::All)
    }

    /// A file that can be changed, and then cannot be let go of: no signal ends that.
    pub(super) fn undroppable(test: &str, at: &Path) -> Option<Mount> {
        File::create(at).unwrap();
        Mount::new(test, at, "100666")?.served(0o100_666, Unanswered::Writes)
    }

    /// How many closes are under way that are never answered.
    pub(super) fn closes(&self) -> usize {
        self.closes.load(Ordering::Relaxed)
    }

    /// A directory in which nothing is, which takes a second to be sure.
    pub(super) fn slow(test: &str, at: &Path) -> Option<Mount> {
        std::fs::create_dir(at).unwrap();
        Mount::new(test, at, "40000")?.served(0o040_777, Unanswered::OfThisProcess)
    }

    fn served(mut self, root: u32, unanswered: Unanswered) -> Option<Mount> {
        let fuse = self.served_by.take()?;
        let over = Arc::new(AtomicBool::new(false));
        let is_over = over.clone();
        let closes = self.closes.clone();
        let server = std::thread::spawn(move || serve(fuse, root, unanswered, &closes, &is_over));
        self.server = Some((over, server));
        Some(self)
    }

    fn new(test: &str, at: &Path, root: &str) -> Option<Mount> {
        let text = |text: &str| std::ffi::CString::new(text).unwrap();
        let mut options = File::options();
        options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
        let served_by = options.open("/dev/fuse").ok();
        let mounted = served_by.as_ref().is_some_and(|fuse| {
            let options = text(&format!(
                "fd={},rootmode={root},user_id=0,group_id=0,allow_other",
                fuse.as_raw_fd()
            ));
            let target = text(at.to_str().unwrap());
            #[expect(unsafe_code, reason = "the tests' only mount is not worth a wrapper")]
            // SAFETY: a system call with valid texts.
            let result = unsafe {
                libc::mount(
                    c"hostile".as_ptr(),
                    target.as_ptr(),
                    c"fuse".as_ptr(),
                    0,
                    options.as_ptr().cast(),
                )
            };
            result == 0
        });
        if !mounted {
            eprintln!("skipped: {test}: no file system can be mounted by /dev/fuse");
            return None;
        }
        Some(Mount { at: at.to_owned(), served_by, server: None, closes: Arc::default() })
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Some((over, server)) = self.server.take() {
            over.store(true, Ordering::Relaxed);
            server.join().unwrap();
        }
        drop(self.served_by.take());
        let target = std::ffi::CString::new(self.at.to_str().unwrap()).unwrap();
        #[expect(unsafe_code, reason = "as for the mount")]
        // SAFETY: a system call with a valid text.
        let _ = unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
    }
}

/// Answers as a file system with one file or an empty directory does (`linux/fuse.h`), but for some
/// closes.
fn serve(
    mut fuse: File,
    root: u32,
    unanswered: Unanswered,
    closes: &AtomicUsize,
    is_over: &AtomicBool,
) {
    const LOOKUP: u32 = 1;
    const FORGET: u32 = 2;
    const GETATTR: u32 = 3;
    const OPEN: u32 = 14;
    const RELEASE: u32 = 18;
    const WRITE: u32 = 16;
    const FLUSH: u32 = 25;
    const INIT: u32 = 26;
    const INTERRUPT: u32 = 36;
    const WRITEBACK_CACHE: u32 = 1 << 16;
    let mut request = vec![0; 256 * 1024];
    // A process in which a thread waits for this one cannot be killed.
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_over.load(Ordering::Relaxed)
        && (unanswered != Unanswered::Writes || Instant::now() < deadline)
    {
        let Ok(length) = fuse.read(&mut request) else {
            std::thread::sleep(Duration::from_millis(2));
            continue;
        };
        let number = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().unwrap());
        assert!(length >= 40);
        let (operation, thread) = (number(4), number(32));
        let is_ours = Path::new(&format!("/proc/self/task/{thread}")).exists();
        let (error, answer): (i32, Vec<u8>) = match operation {
            WRITE => {
                closes.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            FLUSH
                if unanswered != Unanswered::Writes
                    && (is_ours || unanswered == Unanswered::All) =>
            {
                closes.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            LOOKUP => {
                std::thread::sleep(Duration::from_secs(1));
                (-libc::ENOENT, Vec::new())
            }
            FORGET | INTERRUPT => continue,
            // Version 7.31, no flags but perhaps the one for writing later, and pages of a usual
            // size.
            INIT => {
                let flags = if unanswered == Unanswered::Writes { WRITEBACK_CACHE } else { 0 };
                (0, numbers(&[7, 31, 0, flags, 0, 4096, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]))
            }
            GETATTR => {
                let mut attributes = [0; 26];
                // The root, with one name.
                (attributes[4], attributes[19], attributes[20]) = (1, root, 1);
                (0, numbers(&attributes))
            }
            OPEN => (0, vec![0; 16]),
            RELEASE | FLUSH => (0, Vec::new()),
            _ => (-libc::ENOSYS, Vec::new()),
        };
        let mut reply = numbers(&[u32::try_from(16 + answer.len()).unwrap()]);
        reply.extend(error.to_ne_bytes());
        reply.extend(&request[8..16]);
        reply.extend(answer);
        // The asking process may have ended.
        let _ = fuse.write(&reply);
    }
}

fn numbers(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()
}
