//! Releases memory that holds this program's own code and constants, and memory that the allocator
//! keeps, of which one arena has less than one for each thread.

use std::os::unix::ffi::OsStrExt as _;

/// Unmaps the pages of this program's code and constants (`MADV_DONTNEED`, `madvise(2)`) and returns
/// their size in bytes. The kernel maps a page again, from the page cache, when it is used. Called
/// after a start, this frees what only the start needed.
///
/// Touches only mappings that the file can restore: private, readable and not writable, of the
/// program's own file (`/proc/self/exe`), without a page that differs from the file, as relocated
/// and patched code does (`/proc/self/smaps`). Libraries are left alone. Does nothing while a
/// debugger traces the process, because debuggers patch code.
pub fn release() -> usize {
    let is_traced = |status: String| {
        status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
    };
    if std::fs::read_to_string("/proc/self/status").map_or(true, is_traced) {
        return 0;
    }
    let (Ok(program), Ok(smaps)) =
        (std::fs::read_link("/proc/self/exe"), std::fs::read("/proc/self/smaps"))
    else {
        return 0;
    };
    let mut total = 0;
    for (from, to) in unchanged_code(&smaps, program.as_os_str().as_bytes()) {
        // SAFETY: according to `smaps` the range is a private, read-only mapping of the program's
        // file without modified pages, so each page reads the same after it is mapped again. Only a
        // debugger could modify such pages in between, and none is attached. The file cannot be
        // written while it runs (`ETXTBSY`).
        let result = unsafe {
            libc::madvise(
                std::ptr::with_exposed_provenance_mut(from),
                to - from,
                libc::MADV_DONTNEED,
            )
        };
        if result == 0 {
            total += to - from;
        }
    }
    total
}

/// Returns memory to the system that was freed and that the allocator keeps for later use
/// (`malloc_trim(3)`), in all its arenas. Does nothing where the C library has no such function. The
/// time is that of a look at all free memory.
pub fn release_free_memory() {
    // SAFETY: the function has no requirements; it locks each arena while it looks at it.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Has threads allocate from one arena (`M_ARENA_MAX`, `mallopt(3)`), instead of one for each thread
/// that allocates, with pages of its own. For programs of which one thread does the work. Called
/// before there are other threads: they keep the arenas that they have. Does nothing where the C
/// library has no such option.
pub fn use_one_arena() {
    // SAFETY: the function takes two numbers, and locks the allocator while it sets one.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Returns the address ranges that hold unmodified code of the file `program`, from the text of
/// `/proc/PID/smaps` (`proc_pid_smaps(5)`).
fn unchanged_code(smaps: &[u8], program: &[u8]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    // The mapping that is being read; the first line of the next one ends it.
    let mut mapping: Option<Mapping> = None;
    for line in smaps.split(|byte| *byte == b'\n') {
        if let Some(next) = Mapping::begin(line, program) {
            found.extend(mapping.replace(next).and_then(Mapping::if_unchanged));
        } else if let Some(mapping) = &mut mapping {
            mapping.read_field(line);
        }
    }
    found.extend(mapping.and_then(Mapping::if_unchanged));
    found
}

struct Mapping {
    range: (usize, usize),
    is_own_code: bool,
    /// The number of fields of [`CHANGES`] that were present and 0.
    clean_fields: usize,
}

/// The fields with the size, in kB, of pages that differ from the file: copied on write, or swapped
/// out since.
const CHANGES: [&[u8]; 4] = [b"Shared_Dirty", b"Private_Dirty", b"Anonymous", b"Swap"];

impl Mapping {
    /// Parses the first line of a mapping: range, permissions, offset, device, inode, path.
    fn begin(line: &[u8], program: &[u8]) -> Option<Mapping> {
        let text = std::str::from_utf8(line.get(..line.iter().position(|byte| *byte == b' ')?)?);
        let (from, to) = text.ok()?.split_once('-')?;
        let range = (usize::from_str_radix(from, 16).ok()?, usize::from_str_radix(to, 16).ok()?);
        let mut rest = line;
        let mut fields = [&b""[..]; 5];
        for field in &mut fields {
            let end = rest.iter().position(|byte| *byte == b' ')?;
            *field = &rest[..end];
            rest = &rest[end + 1..];
        }
        let is_read_only = matches!(fields[1], b"r-xp" | b"r--p");
        let is_own_code = is_read_only && rest.trim_ascii_start() == program;
        Some(Mapping { range, is_own_code, clean_fields: 0 })
    }

    fn read_field(&mut self, line: &[u8]) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { return };
        if CHANGES.contains(&&line[..colon]) && line[colon + 1..].trim_ascii() == b"0 kB" {
            self.clean_fields += 1;
        }
    }

    fn if_unchanged(self) -> Option<(usize, usize)> {
        (self.is_own_code && self.clean_fields == CHANGES.len()).then_some(self.range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd as _;

    /// Opens this program's file and writes it to the disk: pages of a program that was linked just
    /// now count as modified until then.
    fn own_file() -> std::fs::File {
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        file.sync_all().unwrap();
        file
    }

    #[test]
    fn a_process_runs_on_without_its_code() {
        own_file();
        assert!(release() > 0);
        assert_eq!((0..100).map(|n| n * n).sum::<u32>(), 328_350);
    }

    /// A private executable page of this program's file whose first byte this process has modified
    /// is not released.
    #[test]
    fn code_that_was_patched_stays_as_it_is() {
        let file = own_file();
        let (size, write) = (4096, libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: the mapping is new, so nothing else uses it, and it is written only while it is
        // writable.
        unsafe {
            let page = libc::mmap(
                std::ptr::null_mut(),
                size,
                write,
                libc::MAP_PRIVATE,
                file.as_raw_fd(),
                0,
            );
            assert_ne!(page, libc::MAP_FAILED);
            let first = page.cast::<u8>();
            assert_eq!(first.read_volatile(), 0x7f, "an ELF file");
            first.write_volatile(0xc3);
            assert_eq!(libc::mprotect(page, size, libc::PROT_READ | libc::PROT_EXEC), 0);
            assert!(release() > 0, "other code is released");
            assert_eq!(first.read_volatile(), 0xc3);
            libc::munmap(page, size);
        }
    }

    fn mapping(first_line: &str, changed: [usize; 4]) -> String {
        let [shared, private, anonymous, swap] = changed;
        format!(
            "{first_line}\nSize: 8 kB\nRss: 8 kB\nShared_Clean: 8 kB\nShared_Dirty: {shared} kB\n\
             Private_Clean: 0 kB\nPrivate_Dirty: {private} kB\nAnonymous: {anonymous} kB\n\
             AnonHugePages: 0 kB\nSwap: {swap} kB\nSwapPss: 0 kB\nVmFlags: rd ex mr mw me\n"
        )
    }

    #[test]
    fn only_unchanged_code_of_the_program_itself_is_found() {
        let own = "1000-3000 r-xp 00001000 08:01 42                 /opt/a program";
        let cases = [
            (own, [0; 4], true),
            (own, [4, 0, 0, 0], false),
            (own, [0, 4, 0, 0], false),
            (own, [0, 0, 4, 0], false),
            (own, [0, 0, 0, 4], false),
            ("1000-3000 rwxp 00001000 08:01 42                 /opt/a program", [0; 4], false),
            ("1000-3000 r-xs 00001000 08:01 42                 /opt/a program", [0; 4], false),
            ("1000-3000 rw-p 00001000 08:01 42                 /opt/a program", [0; 4], false),
            ("1000-3000 r--p 00001000 08:01 42                 /opt/a program", [0; 4], true),
            (
                "1000-3000 r--p 00001000 08:01 42                 /opt/a program",
                [0, 4, 0, 0],
                false,
            ),
            ("1000-3000 r-xp 00001000 08:01 42                 /lib/libc.so", [0; 4], false),
            ("1000-3000 r-xp 00000000 00:00 0                  [vdso]", [0; 4], false),
            ("1000-3000 r-xp 00000000 00:00 0 ", [0; 4], false),
        ];
        for (line, changed, is_found) in cases {
            // Between other mappings, whose fields must not be taken for its own.
            let other = mapping("5000-6000 rw-p 00000000 00:00 0 ", [0; 4]);
            let smaps = format!("{other}{}{other}", mapping(line, changed));
            let expected: &[(usize, usize)] = if is_found { &[(0x1000, 0x3000)] } else { &[] };
            assert_eq!(
                unchanged_code(smaps.as_bytes(), b"/opt/a program"),
                expected,
                "{line} {changed:?}"
            );
        }
        // A kernel without one of the fields.
        let partly = mapping(own, [0; 4]).replace("Anonymous:", "Unknown:");
        assert!(unchanged_code(partly.as_bytes(), b"/opt/a program").is_empty());
    }
}
