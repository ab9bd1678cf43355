//! A log file that is rotated by size or age, and reopened when its path leads to another file.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use super::paths;
use troop::program::safe_path::{Directory, Safety, UnsafePath, split};

/// Interval between checks whether the path still leads to the open file.
const PATH_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Permissions of the directories and files that are created.
const DIRECTORY_MODE: u32 = 0o750;
const FILE_MODE: u32 = 0o640;

/// When a log file is rotated, and how many rotated files are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rotation {
    /// The size in bytes; 0 turns rotation by size off.
    pub(crate) size: u64,
    pub(crate) age: Option<Duration>,
    pub(crate) keep: usize,
    /// The total size of rotated files, in bytes.
    pub(crate) total: Option<u64>,
}

/// A log file. Its directory is held while it is open: files are opened, renamed and removed in the
/// directory that was checked, wherever the path leads by then.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    parent: PathBuf,
    name: OsString,
    safety: Safety,
    rotation: Rotation,
    open: Option<OpenFile>,
    path_checked: Instant,
    /// The last rotation has failed, and the next one waits.
    rotation_failed: bool,
    /// Why the path cannot be opened has been reported.
    has_told: bool,
}

#[derive(Debug)]
struct OpenFile {
    directory: Directory,
    file: File,
    /// Whether the file can be truncated and renamed, which a device cannot.
    regular: bool,
    len: u64,
    /// When the first line was written, as far as that is known.
    since: SystemTime,
    /// Whether `begin` has created the file.
    created: bool,
}

impl OpenFile {
    fn new(directory: Directory, name: &OsStr) -> io::Result<OpenFile> {
        let (file, created) = directory.append(name, FILE_MODE)?;
        let found = file.metadata()?;
        let since =
            found.created().or_else(|_| found.modified()).unwrap_or_else(|_| SystemTime::now());
        Ok(OpenFile { directory, file, regular: found.is_file(), len: found.len(), since, created })
    }

    /// Whether the path still leads to the open file.
    fn is_at(&self, directory: &Directory, name: &OsStr) -> bool {
        let same = |found: Metadata| {
            self.file
                .metadata()
                .is_ok_and(|ours| (ours.dev(), ours.ino()) == (found.dev(), found.ino()))
        };
        directory.is_same(&self.directory)
            && directory.entry(name).is_ok_and(|found| found.is_some_and(same))
    }
}

impl LogFile {
    pub(crate) fn new(path: PathBuf, rotation: Rotation, safety: Safety) -> LogFile {
        // A path without a file name is rejected when it is opened.
        let (parent, name) = split(&path).unwrap_or_default();
        let path_checked = Instant::now();
        LogFile {
            path,
            parent,
            name,
            safety,
            rotation,
            open: None,
            path_checked,
            rotation_failed: false,
            has_told: false,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the file of a slot, where each has one of its own.
    pub(super) fn of_slot(&self, slot: u32) -> LogFile {
        let path = paths::of_slot(&self.path, slot).unwrap_or_else(|| self.path.clone());
        LogFile::new(path, self.rotation, self.safety)
    }

    /// Checks whether the file could be opened, without creating anything.
    ///
    /// # Errors
    /// The reason, for people.
    pub(crate) fn check(&self) -> Result<(), String> {
        let found = Directory::find(&self.parent, self.safety);
        found
            .and_then(|found| found.map_or(Ok(()), |directory| directory.check_append(&self.name)))
            .map_err(|e| self.cannot(&e))
    }

    /// Opens the file, and creates it with its directories if they are missing. With `goes_on` it may be
    /// opened later; each write tries that.
    ///
    /// # Errors
    /// The reason, for people.
    pub(crate) fn begin(&mut self, goes_on: bool) -> Result<(), String> {
        // The first line says why not.
        self.try_begin().or_else(|e| if goes_on { Ok(()) } else { Err(e) })
    }

    fn try_begin(&mut self) -> Result<(), String> {
        if paths::is_of_slots(&self.path) {
            // Those are created with their first lines.
            let created = Directory::create(&self.parent, self.safety, DIRECTORY_MODE);
            return created.map(drop).map_err(|e| self.cannot(&e));
        }
        self.opened().map(drop).map_err(|e| self.cannot(&e))
    }

    /// Removes what [`begin`](LogFile::begin) has created.
    pub(crate) fn take_back(&mut self) {
        if let Some(open) = self.open.take_if(|open| open.created && open.len == 0)
            && open.is_at(&open.directory, &self.name)
        {
            let _ = open.directory.remove(&self.name);
        }
    }

    fn cannot(&self, e: &io::Error) -> String {
        format!("cannot write {}: {e}", self.path.display())
    }

    /// Reopens the path before the next line.
    pub(crate) fn reopen(&mut self) {
        if self.open.is_some() {
            self.reopen_path();
        }
    }

    /// Writes whole lines. A rotated file ends with a whole line too.
    ///
    /// # Errors
    /// If not everything could be written; the part that was written is cut off again.
    pub(crate) fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        if self.path_checked.elapsed() >= PATH_CHECK_INTERVAL {
            self.path_checked = Instant::now();
            self.check_path();
        }
        let mut rest = lines;
        while !rest.is_empty() {
            let size = self.rotation.size;
            let rotation_failed = self.rotation_failed;
            if let Err(e) = self.opened() {
                // Others than those of slots have been opened at the start.
                self.tell(&e, "its lines are lost");
                return Err(e);
            }
            let open = self.opened()?;
            let room = if size == 0 || !open.regular || rotation_failed {
                u64::MAX
            } else {
                size.saturating_sub(open.len)
            };
            // As many whole lines as fit; a line that is longer than the limit goes into a file
            // alone.
            let fits = usize::try_from(room).unwrap_or(usize::MAX).min(rest.len());
            let end = if fits == rest.len() {
                fits
            } else {
                rest[..fits].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1)
            };
            let end = match (end, open.len) {
                (0, 1..) => {
                    // A file that cannot be rotated keeps growing.
                    self.rotation_failed = self.rotate().is_err();
                    continue;
                }
                (0, 0) => {
                    rest.iter().position(|byte| *byte == b'\n').map_or(rest.len(), |at| at + 1)
                }
                (end, _) => end,
            };
            if let Err(e) = open.file.write_all(&rest[..end]) {
                // The disk is full: remove the partial line.
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

    fn opened(&mut self) -> io::Result<&mut OpenFile> {
        if self.open.is_none() {
            let directory = Directory::create(&self.parent, self.safety, DIRECTORY_MODE)?;
            self.open = Some(OpenFile::new(directory, &self.name)?);
            self.has_told = false;
        }
        self.open.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Opens the file that the path leads to. If that fails or is not safe, the open file stays in
    /// use, because it is the one that was checked.
    fn reopen_path(&mut self) {
        let before = self.open.take();
        if let Err(e) = self.opened().map(drop) {
            self.open = before;
            if UnsafePath::is_cause_of(&e) {
                self.tell(&e, "lines go on into the file that was open before");
            }
        }
    }

    /// Says once why the path cannot be opened.
    fn tell(&mut self, e: &io::Error, what_follows: &str) {
        if !std::mem::replace(&mut self.has_told, true) {
            crate::log::line(&format!("troop: {}; {what_follows}", self.cannot(e)));
        }
    }

    /// Whether the file has been moved away, or has reached its age.
    fn check_path(&mut self) {
        self.rotation_failed = false;
        let Some(open) = &self.open else { return };
        let found = Directory::find(&self.parent, self.safety);
        if !found
            .is_ok_and(|found| found.is_some_and(|directory| open.is_at(&directory, &self.name)))
        {
            self.reopen_path();
            return;
        }
        let is_old = |limit: Duration| open.since.elapsed().is_ok_and(|age| age >= limit);
        if open.regular && open.len > 0 && self.rotation.age.is_some_and(is_old) {
            // A file that cannot be reopened keeps growing.
            let _ = self.rotate();
        }
    }

    fn numbered(&self, number: usize) -> OsString {
        let mut name = self.name.clone();
        name.push(format!(".{number}"));
        name
    }

    /// Renames `app.log` to `app.log.1`, that to `app.log.2`, and so on; removes the last one.
    fn rotate(&mut self) -> io::Result<()> {
        let Some(open) = &self.open else { return Ok(()) };
        let directory = &open.directory;
        // The path leads to another file, which is not troop's to move.
        if open.is_at(directory, &self.name) {
            self.shift(directory)?;
        }
        let Some(open) = self.open.take() else { return Ok(()) };
        self.open = Some(OpenFile::new(open.directory, &self.name)?);
        Ok(())
    }

    fn shift(&self, directory: &Directory) -> io::Result<()> {
        let keep = self.rotation.keep;
        if keep == 0 {
            return directory.remove(&self.name);
        }
        // As many as there are: `keep` may be any number.
        let is_taken =
            |number: usize| matches!(directory.entry(&self.numbered(number)), Ok(Some(_)));
        let free = (1..keep).find(|number| !is_taken(*number)).unwrap_or(keep);
        for number in (1..free).rev() {
            let _ = directory.rename(&self.numbered(number), &self.numbered(number + 1));
        }
        directory.rename(&self.name, &self.numbered(1))?;
        if let Some(total) = self.rotation.total {
            let mut sum = 0;
            for number in 1..=keep {
                let Some(found) = directory.entry(&self.numbered(number))? else { break };
                sum += found.len();
                if sum > total {
                    let _ = directory.remove(&self.numbered(number));
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
        let mut log = LogFile::new(path.clone(), rotation(10, 2), Safety::Links);
        for line in ["aaa\nbbb\n", "ccc\nddd\n", "a line that is longer than a file\n", "eee\n"] {
            log.write(line.as_bytes()).unwrap();
        }
        let one = |number: usize| text(&path.with_extension(format!("log.{number}")));
        assert_eq!(
            (text(&path), one(1), one(2), one(3)),
            (
                "eee\n".into(),
                "a line that is longer than a file\n".into(),
                "ccc\nddd\n".into(),
                String::new()
            )
        );
        let mut log = LogFile::new(
            path.clone(),
            Rotation { total: Some(5), ..rotation(10, 9) },
            Safety::Links,
        );
        log.write(b"1234567\n").unwrap();
        assert_eq!(
            (text(&path), one(1), one(2)),
            ("1234567\n".into(), "eee\n".into(), String::new())
        );
    }

    #[test]
    fn any_number_of_files_can_be_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.log");
        let all = Rotation { total: Some(u64::MAX), ..rotation(4, usize::MAX) };
        let mut log = LogFile::new(path.clone(), all, Safety::Links);
        for number in 0..5 {
            log.write(format!("{number}--\n").as_bytes()).unwrap();
        }
        let kept =
            [1, 2, 3, 4, 5].map(|number| text(&path.with_extension(format!("log.{number}"))));
        assert_eq!(kept, ["3--\n", "2--\n", "1--\n", "0--\n", ""]);
    }

    #[test]
    fn a_file_that_is_old_is_put_aside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.log");
        let mut log = LogFile::new(
            path.clone(),
            Rotation { age: Some(Duration::ZERO), ..rotation(0, 1) },
            Safety::Links,
        );
        log.write(b"a\n").unwrap();
        log.check_path();
        log.write(b"b\n").unwrap();
        assert_eq!(
            (text(&path), text(&directory.path().join("app.log.1"))),
            ("b\n".into(), "a\n".into())
        );
    }

    #[test]
    fn a_file_that_somebody_has_moved_is_made_anew() {
        let directory = tempfile::tempdir().unwrap();
        let (path, moved) = (directory.path().join("app.log"), directory.path().join("moved"));
        let mut log = LogFile::new(path.clone(), rotation(0, 1), Safety::Links);
        log.write(b"a\n").unwrap();
        std::fs::rename(&path, &moved).unwrap();
        log.check_path();
        log.write(b"b\n").unwrap();
        assert_eq!((text(&moved), text(&path)), ("a\n".into(), "b\n".into()));
        std::fs::rename(&path, &moved).unwrap();
        log.reopen();
        log.write(b"c\n").unwrap();
        assert_eq!((text(&moved), text(&path)), ("b\n".into(), "c\n".into()));
    }

    #[test]
    fn what_is_no_file_is_left_where_it_is_and_links_are_not_followed() {
        let mut log = LogFile::new(
            "/dev/null".into(),
            Rotation { age: Some(Duration::ZERO), ..rotation(4, 0) },
            Safety::Links,
        );
        log.write(b"more than four\n").unwrap();
        log.check_path();
        log.write(b"more than four\n").unwrap();
        assert!(
            !Path::new("/dev/null").metadata().unwrap().is_file()
                && !Path::new("/dev/null.1").exists()
        );
        let directory = tempfile::tempdir().unwrap();
        let (link, target) = (directory.path().join("app.log"), directory.path().join("secret"));
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(
            LogFile::new(link, rotation(0, 1), Safety::Links).write(b"a\n").is_err()
                && !target.exists()
        );
        // A pipe without a reader must not block.
        let pipe = directory.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, 0o600.into()).unwrap();
        assert!(LogFile::new(pipe, rotation(0, 1), Safety::Links).check().is_err());
    }

    #[test]
    fn what_is_put_in_the_place_of_a_log_is_not_written_to_and_no_line_is_lost() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::set_permissions(
            directory.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o777),
        )
        .unwrap();
        std::fs::write(at("secret"), "").unwrap();
        let mut log = LogFile::new(at("app.log"), rotation(0, 1), Safety::Links);
        let mut lines = String::new();
        let plant: [&dyn Fn(); 4] = [
            &|| std::os::unix::fs::symlink("secret", at("app.log")).unwrap(),
            &|| std::fs::hard_link(at("secret"), at("app.log")).unwrap(),
            &|| rustix::fs::mkfifoat(rustix::fs::CWD, at("app.log"), 0o666.into()).unwrap(),
            &|| std::fs::create_dir(at("app.log")).unwrap(),
        ];
        for (number, plant) in (0..).zip(plant) {
            log.write(b"before\n").unwrap();
            std::fs::rename(at("app.log"), at(&format!("moved.{number}"))).unwrap();
            plant();
            log.check_path();
            log.reopen();
            log.write(b"after\n").unwrap();
            assert_eq!(text(&at("secret")), "");
            lines += &text(&at(&format!("moved.{number}")));
            std::fs::rename(at("app.log"), at(&format!("planted.{number}"))).unwrap();
            log.check_path();
        }
        assert_eq!(lines, "before\nafter\n".repeat(4));
    }

    #[test]
    fn a_file_of_others_is_not_put_aside_and_nothing_is_made_by_a_check() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let mut log = LogFile::new(at("deep/app.log"), rotation(4, 1), Safety::Links);
        log.check().unwrap();
        assert!(!at("deep").exists());
        log.begin(false).unwrap();
        log.take_back();
        assert!(!at("deep/app.log").exists());
        log.write(b"a\n").unwrap();
        std::fs::rename(at("deep/app.log"), at("moved")).unwrap();
        std::fs::write(at("deep/app.log"), "others'\n").unwrap();
        log.write(b"bcd\n").unwrap();
        let texts = ["moved", "deep/app.log.1", "deep/app.log"].map(|name| text(&at(name)));
        assert_eq!(texts, ["a\n", "others'\n", "bcd\n"]);
    }

    #[test]
    fn a_file_that_cannot_be_put_aside_grows() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.log");
        std::fs::create_dir(directory.path().join("app.log.1")).unwrap();
        let mut log = LogFile::new(path.clone(), rotation(4, 1), Safety::Links);
        (0..3).for_each(|_| log.write(b"abc\n").unwrap());
        assert_eq!(text(&path), "abc\nabc\nabc\n");
    }

    #[test]
    fn a_disk_that_is_full_is_an_error_and_leaves_no_half_lines() {
        let mut log = LogFile::new("/dev/full".into(), rotation(0, 1), Safety::Links);
        assert_eq!(log.write(b"a\n").unwrap_err().raw_os_error(), Some(28));
    }
}
