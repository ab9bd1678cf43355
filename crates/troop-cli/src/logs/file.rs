//! A file that is closed and put aside when it is big or old, and opened again when somebody has moved it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::OFlags;

/// How often it is looked whether the file is still where it was.
const LOOK: Duration = Duration::from_secs(1);

/// When a file is put aside, and how many are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rotation {
    /// 0: never.
    pub(crate) size: u64,
    pub(crate) age: Option<Duration>,
    pub(crate) keep: usize,
    /// What those that are kept may have together.
    pub(crate) total: Option<u64>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    rotation: Rotation,
    open: Option<Open>,
    looked: Instant,
    /// It could not be put aside a moment ago.
    stuck: bool,
}

#[derive(Debug)]
struct Open {
    file: File,
    /// It can be cut and moved. A device, say, cannot.
    regular: bool,
    len: u64,
    /// When its first line was written, as far as is known.
    since: SystemTime,
}

impl LogFile {
    pub(crate) fn new(path: PathBuf, rotation: Rotation) -> LogFile {
        LogFile { path, rotation, open: None, looked: Instant::now(), stuck: false }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens it, to see whether that can be done.
    ///
    /// # Errors
    /// If it cannot.
    pub(crate) fn check(&mut self) -> io::Result<()> {
        self.opened().map(drop)
    }

    /// Closes the file, so that the next line opens it anew.
    pub(crate) fn reopen(&mut self) {
        self.open = None;
    }

    /// Writes whole lines. What is put aside ends with a whole line too.
    ///
    /// # Errors
    /// If nothing, or not all, could be written; what was written of it is cut off again.
    pub(crate) fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        if self.looked.elapsed() >= LOOK {
            self.looked = Instant::now();
            self.look();
        }
        let mut rest = lines;
        while !rest.is_empty() {
            let size = self.rotation.size;
            let stuck = self.stuck;
            let open = self.opened()?;
            let room = if size == 0 || !open.regular || stuck { u64::MAX } else { size.saturating_sub(open.len) };
            // As many whole lines as fit; one that does not fit into an empty file goes alone.
            let fits = usize::try_from(room).unwrap_or(usize::MAX).min(rest.len());
            let end = if fits == rest.len() {
                fits
            } else {
                rest[..fits].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1)
            };
            let end = match (end, open.len) {
                (0, 1..) => {
                    // If it cannot be put aside, it grows.
                    self.stuck = self.put_aside().is_err();
                    continue;
                }
                (0, 0) => rest.iter().position(|byte| *byte == b'\n').map_or(rest.len(), |at| at + 1),
                (end, _) => end,
            };
            if let Err(e) = open.file.write_all(&rest[..end]) {
                // A full disk: no half lines.
                if open.regular {
                    let _ = open.file.set_len(open.len);
                }
                return Err(e);
            }
            open.len += end as u64;
            rest = &rest[end..];
        }
        Ok(())
    }

    fn opened(&mut self) -> io::Result<&mut Open> {
        if self.open.is_none() {
            if let Some(parent) = self.path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                DirBuilder::new().recursive(true).mode(0o750).create(parent)?;
            }
            // Never by a link that somebody has laid there, and without waiting for whoever reads a pipe.
            let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
            let file = OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(flags).open(&self.path)?;
            let found = file.metadata()?;
            let since = found.created().or_else(|_| found.modified()).unwrap_or_else(|_| SystemTime::now());
            self.open = Some(Open { file, regular: found.is_file(), len: found.len(), since });
        }
        self.open.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Whether the file has been moved away, or is too old.
    fn look(&mut self) {
        self.stuck = false;
        let Some(open) = &self.open else { return };
        let same = |found: std::fs::Metadata| {
            open.file.metadata().is_ok_and(|ours| (ours.dev(), ours.ino()) == (found.dev(), found.ino()))
        };
        if !self.path.metadata().is_ok_and(same) {
            self.open = None;
            return;
        }
        let is_old = |limit: Duration| open.since.elapsed().is_ok_and(|age| age >= limit);
        if open.regular && open.len > 0 && self.rotation.age.is_some_and(is_old) {
            // If it cannot be, it grows.
            let _ = self.put_aside();
        }
    }

    fn numbered(&self, number: usize) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }

    /// `app.log` becomes `app.log.1`, that `app.log.2`, and so on; the last one goes.
    fn put_aside(&mut self) -> io::Result<()> {
        self.open = None;
        let keep = self.rotation.keep;
        if keep == 0 {
            return std::fs::remove_file(&self.path);
        }
        let _ = std::fs::remove_file(self.numbered(keep));
        for number in (1..keep).rev() {
            let _ = std::fs::rename(self.numbered(number), self.numbered(number + 1));
        }
        std::fs::rename(&self.path, self.numbered(1))?;
        if let Some(total) = self.rotation.total {
            let mut sum = 0;
            for number in 1..=keep {
                sum += self.numbered(number).metadata().map_or(0, |found| found.len());
                if sum > total {
                    let _ = std::fs::remove_file(self.numbered(number));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rotation(size: u64, keep: usize) -> Rotation {
        Rotation { size, age: None, keep, total: None }
    }

    fn text(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap_or_default()
    }

    #[test]
    fn a_file_that_is_full_is_put_aside_and_only_so_many_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/app.log");
        let mut log = LogFile::new(path.clone(), rotation(10, 2));
        for line in ["aaa\nbbb\n", "ccc\nddd\n", "a line that is longer than a file\n", "eee\n"] {
            log.write(line.as_bytes()).unwrap();
        }
        let one = |number: usize| text(&path.with_extension(format!("log.{number}")));
        assert_eq!(
            (text(&path), one(1), one(2), one(3)),
            ("eee\n".into(), "a line that is longer than a file\n".into(), "ccc\nddd\n".into(), String::new())
        );
        let mut log = LogFile::new(path.clone(), Rotation { total: Some(5), ..rotation(10, 9) });
        log.write(b"1234567\n").unwrap();
        assert_eq!((text(&path), one(1), one(2)), ("1234567\n".into(), "eee\n".into(), String::new()));
    }

    #[test]
    fn a_file_that_is_old_is_put_aside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.log");
        let mut log = LogFile::new(path.clone(), Rotation { age: Some(Duration::ZERO), ..rotation(0, 1) });
        log.write(b"a\n").unwrap();
        log.look();
        log.write(b"b\n").unwrap();
        assert_eq!((text(&path), text(&directory.path().join("app.log.1"))), ("b\n".into(), "a\n".into()));
    }

    #[test]
    fn a_file_that_somebody_has_moved_is_made_anew() {
        let directory = tempfile::tempdir().unwrap();
        let (path, moved) = (directory.path().join("app.log"), directory.path().join("moved"));
        let mut log = LogFile::new(path.clone(), rotation(0, 1));
        log.write(b"a\n").unwrap();
        std::fs::rename(&path, &moved).unwrap();
        log.look();
        log.write(b"b\n").unwrap();
        assert_eq!((text(&moved), text(&path)), ("a\n".into(), "b\n".into()));
        std::fs::rename(&path, &moved).unwrap();
        log.reopen();
        log.write(b"c\n").unwrap();
        assert_eq!((text(&moved), text(&path)), ("b\n".into(), "c\n".into()));
    }

    #[test]
    fn what_is_no_file_is_left_where_it_is_and_links_are_not_followed() {
        let mut log = LogFile::new("/dev/null".into(), Rotation { age: Some(Duration::ZERO), ..rotation(4, 0) });
        log.write(b"more than four\n").unwrap();
        log.look();
        log.write(b"more than four\n").unwrap();
        assert!(!Path::new("/dev/null").metadata().unwrap().is_file() && !Path::new("/dev/null.1").exists());
        let directory = tempfile::tempdir().unwrap();
        let (link, target) = (directory.path().join("app.log"), directory.path().join("secret"));
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(LogFile::new(link, rotation(0, 1)).write(b"a\n").is_err() && !target.exists());
        // A pipe that nobody reads holds up nobody.
        let pipe = directory.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, 0o600.into()).unwrap();
        assert!(LogFile::new(pipe, rotation(0, 1)).check().is_err());
    }

    #[test]
    fn a_file_that_cannot_be_put_aside_grows() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.log");
        std::fs::create_dir(directory.path().join("app.log.1")).unwrap();
        let mut log = LogFile::new(path.clone(), rotation(4, 1));
        (0..3).for_each(|_| log.write(b"abc\n").unwrap());
        assert_eq!(text(&path), "abc\nabc\nabc\n");
    }

    #[test]
    fn a_disk_that_is_full_is_an_error_and_leaves_no_half_lines() {
        let mut log = LogFile::new("/dev/full".into(), rotation(0, 1));
        assert_eq!(log.write(b"a\n").unwrap_err().raw_os_error(), Some(28));
    }
}
