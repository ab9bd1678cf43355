use std::fs::{self, Permissions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{RenameFlags, mkfifoat, renameat_with};

use super::*;

/// A user who owns nothing else.
const STRANGER: u32 = 64_018;

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn is_unsafe(result: &io::Result<impl fmt::Debug>) -> bool {
    result.as_ref().is_err_and(UnsafePath::is_cause_of)
}

/// Whether this process may change owners.
fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: {test} needs root");
    }
    root
}

fn name(text: &str) -> &OsStr {
    OsStr::new(text)
}

#[test]
fn a_path_whose_links_multiply_its_components_is_rejected() {
    let home = directory();
    let at = |name: &str| home.path().join(name);
    fs::create_dir(at("d")).unwrap();
    let detour = "d/../".repeat(300);
    symlink(format!("{detour}d"), at("link0")).unwrap();
    for n in 1..4 {
        symlink(format!("{detour}link{}", n - 1), at(&format!("link{n}"))).unwrap();
    }
    Directory::open(&at("link0"), Safety::Links).unwrap();
    assert_eq!(
        Directory::open(&at("link3"), Safety::Links).unwrap_err().raw_os_error(),
        Some(libc::ELOOP)
    );
}

#[test]
fn links_are_followed_in_protected_directories_only() {
    let home = directory();
    let at = |name: &str| home.path().join(name);
    fs::create_dir_all(at("real/deep")).unwrap();
    fs::create_dir(at("place")).unwrap();
    symlink("../real/./deep/..", at("place/relative")).unwrap();
    symlink(at("real"), at("place/absolute")).unwrap();
    symlink("loop", at("place/loop")).unwrap();
    let inode = |path: &Path| fs::metadata(path).unwrap().ino();
    for link in ["relative", "absolute"] {
        let opened = Directory::open(&at("place").join(link).join("deep"), Safety::Owners).unwrap();
        assert_eq!(opened.metadata().ino(), inode(&at("real/deep")), "{link}");
    }
    let looped = Directory::open(&at("place/loop/x"), Safety::Links).unwrap_err();
    assert_eq!(looped.raw_os_error(), Some(libc::ELOOP));
    for open in [0o777, 0o1777, 0o770, 0o775] {
        mode(&at("place"), open);
        for link in ["relative", "absolute"] {
            let refused = Directory::open(&at("place").join(link).join("deep"), Safety::Links);
            // Nobody else may be in a user's own group.
            let place = fs::File::open(at("place")).unwrap();
            let is_own =
                open & 0o002 == 0 && who_can_change(&place, &place.metadata().unwrap()).is_none();
            assert_eq!(is_unsafe(&refused), !is_own, "{link} {open:o} {refused:?}");
        }
        assert!(Directory::open(&at("place"), Safety::Links).is_ok());
    }
}

#[test]
fn missing_directories_are_created_only_by_create() {
    let home = directory();
    let path = home.path().join("a/b/../c");
    assert!(Directory::find(&path, Safety::Owners).unwrap().is_none());
    assert_eq!(Directory::open(&path, Safety::Owners).unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
    let made = Directory::create(&path, Safety::Owners, 0o700).unwrap();
    assert_eq!((made.metadata().mode() & 0o777, home.path().join("a/c").is_dir()), (0o700, true));
    fs::write(home.path().join("file"), "").unwrap();
    for path in ["file", "file/x"] {
        assert_eq!(
            Directory::open(&home.path().join(path), Safety::Links).unwrap_err().kind(),
            io::ErrorKind::NotADirectory
        );
    }
}

#[test]
fn a_directory_that_others_can_change_or_exchange_is_rejected() {
    let home = directory();
    let at = |name: &str| home.path().join(name);
    fs::create_dir_all(at("open/mine")).unwrap();
    mode(&at("open"), 0o777);
    assert!(is_unsafe(&Directory::open(&at("open"), Safety::Owners)));
    assert!(
        Directory::open(&at("open/mine"), Safety::Owners).is_ok(),
        "it belongs to a trusted user"
    );
    if !is_root("a_directory_that_others_can_change_or_exchange_is_rejected") {
        return;
    }
    fs::create_dir_all(at("theirs/root/deep")).unwrap();
    chown(at("theirs"), Some(STRANGER), Some(STRANGER)).unwrap();
    assert!(is_unsafe(&Directory::open(&at("theirs"), Safety::Owners)));
    assert!(Directory::open(&at("theirs/root/deep"), Safety::Owners).is_ok());
    chown(at("theirs/root"), Some(STRANGER), Some(STRANGER)).unwrap();
    let refused = Directory::open(&at("theirs/root/deep"), Safety::Owners);
    assert!(is_unsafe(&refused));
    let text = refused.unwrap_err().to_string();
    assert!(
        text.contains(&format!("belongs to user {STRANGER}")) && text.contains("mode 755"),
        "{text}"
    );
    assert!(Directory::open(&at("theirs/root/deep"), Safety::Links).is_ok());
}

#[test]
fn a_path_that_others_could_change_later_is_rejected_as_text() {
    let home = directory();
    let at = |name: &str| home.path().join(name);
    fs::create_dir_all(at("open/mine")).unwrap();
    symlink("open/mine", at("link")).unwrap();
    let opened = |name: &str| Directory::open(&at(name), Safety::Ancestors);
    for (open, is_fine) in [(0o755, true), (0o1777, true), (0o777, false), (0o757, false)] {
        mode(&at("open"), open);
        for name in ["open/mine", "link"] {
            assert_eq!(is_unsafe(&opened(name)), !is_fine, "{name} {open:o}");
        }
        let made = Directory::create(&at("open/made/deep"), Safety::Ancestors, 0o700);
        assert_eq!(made.is_ok(), is_fine, "{open:o} {made:?}");
        let _ = fs::remove_dir_all(at("open/made"));
    }
    mode(&at("open"), 0o1777);
    assert!(is_unsafe(&opened("open")), "others could add to it");
    if !is_root("a_path_that_others_could_change_later_is_rejected_as_text") {
        return;
    }
    fs::create_dir(at("open/theirs")).unwrap();
    fs::create_dir(at("open/theirs/mine")).unwrap();
    for theirs in [0o755, 0o777, 0o1777] {
        mode(&at("open/theirs"), theirs);
        chown(at("open/theirs"), Some(STRANGER), Some(STRANGER)).unwrap();
        assert!(is_unsafe(&opened("open/theirs/mine")), "{theirs:o}");
    }
    mode(&at("open"), 0o755);
    assert!(is_unsafe(&opened("open/theirs/mine")), "its owner can exchange it");
    chown(at("open/theirs"), Some(0), Some(0)).unwrap();
    assert!(opened("open/theirs/mine").is_ok());
}

#[test]
fn only_a_regular_file_with_one_name_is_appended_to() {
    let home = directory();
    let at = |name: &str| home.path().join(name);
    let held = Directory::open(home.path(), Safety::Owners).unwrap();
    let (mut log, made) = held.append(name("log"), 0o640).unwrap();
    log.write_all(b"a\n").unwrap();
    assert!(made);
    let (mut log, made) = held.append(name("log"), 0o640).unwrap();
    log.write_all(b"b\n").unwrap();
    assert!(
        !made && held.check_append(name("log")).is_ok() && held.check_append(name("none")).is_ok()
    );
    assert_eq!(
        (fs::read_to_string(at("log")).unwrap().as_str(), at("none").exists()),
        ("a\nb\n", false)
    );
    fs::write(at("secret"), "").unwrap();
    fs::hard_link(at("secret"), at("hard")).unwrap();
    symlink(at("secret"), at("link")).unwrap();
    symlink(at("made"), at("dangling")).unwrap();
    fs::create_dir(at("directory")).unwrap();
    mkfifoat(CWD, at("pipe"), 0o666.into()).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    // The pipe has a reader, so that opening it for writing would succeed.
    let _reader =
        openat(CWD, at("pipe"), OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).unwrap();
    for bad in ["hard", "link", "dangling", "directory", "pipe", "socket"] {
        assert!(is_unsafe(&held.append(name(bad), 0o640)), "{bad}");
        assert!(is_unsafe(&held.check_append(name(bad))), "{bad}");
    }
    for bad in ["..", ".", "", "a/b", "/etc/passwd", "a/"] {
        assert_eq!(
            held.append(name(bad), 0o640).unwrap_err().kind(),
            io::ErrorKind::InvalidInput,
            "{bad:?}"
        );
    }
    assert_eq!(
        (fs::read_to_string(at("secret")).unwrap().as_str(), at("made").exists()),
        ("", false)
    );
    let devices = Directory::open(Path::new("/dev"), Safety::Owners).unwrap();
    assert!(devices.append(name("null"), 0o640).is_ok());
}

#[test]
fn a_file_of_another_user_in_a_world_writable_directory_is_not_appended_to() {
    if !is_root("a_file_of_another_user_in_a_world_writable_directory_is_not_appended_to") {
        return;
    }
    let home = directory();
    let at = |name: &str| home.path().join(name);
    fs::write(at("log"), "").unwrap();
    chown(at("log"), Some(STRANGER), None).unwrap();
    let append = || Directory::open(home.path(), Safety::Links).unwrap().append(name("log"), 0o640);
    assert!(append().is_ok(), "nobody else can have put it there");
    mode(home.path(), 0o1777);
    assert!(is_unsafe(&append()));
    chown(home.path(), Some(STRANGER), None).unwrap();
    assert!(append().is_ok(), "the owner of the directory can change it anyway");
}

#[test]
fn a_held_directory_is_unaffected_by_changes_of_its_path() {
    let home = directory();
    let at = |name: &str| home.path().join(name);
    fs::create_dir_all(at("logs")).unwrap();
    fs::create_dir_all(at("secret")).unwrap();
    mode(home.path(), 0o777);
    let held = Directory::open(&at("logs"), Safety::Links).unwrap();
    fs::rename(at("logs"), at("moved")).unwrap();
    symlink("secret", at("logs")).unwrap();
    held.append(name("log"), 0o640).unwrap();
    held.rename(name("log"), name("log.1")).unwrap();
    held.append(name("log"), 0o640).unwrap();
    held.remove(name("log")).unwrap();
    assert!(held.entry(name("log")).unwrap().is_none() && held.read(name("log.1")).is_ok());
    assert!(at("moved/log.1").exists());
    fs::write(held.reach(name("reached")), "").unwrap();
    assert!(at("moved/reached").exists());
    assert_eq!(fs::read_dir(at("secret")).unwrap().count(), 0);
    assert!(is_unsafe(&Directory::open(&at("logs"), Safety::Links)));
}

#[test]
fn a_directory_that_alternates_with_a_link_is_never_opened_through_the_link() {
    let home = directory();
    let at = |name: &str| home.path().join(name);
    for name in ["logs", "secret", "secret/deep", "logs/deep"] {
        fs::create_dir(at(name)).unwrap();
    }
    symlink("secret", at("link")).unwrap();
    mode(home.path(), 0o777);
    let over = AtomicBool::new(false);
    let (mut opened, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                renameat_with(CWD, at("logs"), CWD, at("link"), RenameFlags::EXCHANGE).unwrap();
            }
        });
        let deadline = Instant::now() + Duration::from_secs(20);
        while (opened < 500 || refused < 500) && Instant::now() < deadline {
            match Directory::create(&at("logs/deep"), Safety::Links, 0o700) {
                Ok(held) => {
                    drop(held.append(name("log"), 0o600).unwrap());
                    opened += 1;
                }
                Err(e) => {
                    assert_eq!(e.kind(), io::ErrorKind::PermissionDenied, "{e}");
                    refused += 1;
                }
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    assert!(opened >= 500 && refused >= 500, "the exchange was seen: {opened} {refused}");
    assert!(!at("secret/deep/log").exists());
}

#[test]
fn only_regular_files_of_bounded_size_are_read_and_weak_components_are_reported() {
    let home = directory();
    let at = |name: &str| home.path().join(name);
    fs::write(at("file"), "12345").unwrap();
    symlink("file", at("link")).unwrap();
    mkfifoat(CWD, at("pipe"), 0o666.into()).unwrap();
    let (mut file, weak) = open_for_reading(&at("link"), 5).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    let below = |weak: &[Weak]| {
        weak.iter().filter(|weak| weak.path.starts_with(home.path())).cloned().collect::<Vec<_>>()
    };
    assert_eq!((text.as_str(), below(&weak)), ("12345", vec![]));
    assert_eq!(open_for_reading(&at("file"), 4).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    for (path, kind) in [("pipe", "a pipe"), (".", "a directory")] {
        let e = open_for_reading(&at(path), 5).unwrap_err();
        assert!(e.kind() == io::ErrorKind::InvalidInput && e.to_string().contains(kind), "{e}");
    }
    let e = open_for_reading(Path::new("/dev/zero"), 5).unwrap_err();
    assert!(e.to_string().contains("a device"), "{e}");
    assert_eq!(open_for_reading(&at("none/x"), 5).unwrap_err().kind(), io::ErrorKind::NotFound);
    mode(&at("file"), 0o666);
    mode(home.path(), 0o777);
    let (_, weak) = open_for_reading(&at("file"), 5).unwrap();
    let weak = below(&weak);
    assert_eq!(
        weak.iter().map(|weak| weak.path.clone()).collect::<Vec<_>>(),
        [home.path().to_owned(), at("file")]
    );
    assert!(weak[1].who.contains("mode 666") && !weak[0].sticky, "{weak:?}");
}

/// Runs with another effective user in a thread, as only the system call does.
fn with_effective_user<T: Send>(uid: u32, work: impl FnOnce() -> T + Send) -> T {
    let run = move || {
        // SAFETY: changes the effective user of this thread, which ends with the work.
        assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, -1, uid, -1) }, 0);
        work()
    };
    std::thread::scope(|scope| scope.spawn(run).join().unwrap())
}

#[test]
fn a_directory_that_a_group_can_change_is_rejected_unless_nobody_else_is_known_to_be_in_it() {
    if !is_root(
        "a_directory_that_a_group_can_change_is_rejected_unless_nobody_else_is_known_to_be_in_it",
    ) {
        return;
    }
    let home = directory();
    mode(home.path(), 0o755);
    let at = home.path().join("www");
    fs::create_dir(&at).unwrap();
    let who = |user: u32, group: u32, bits: u32| {
        chown(&at, Some(user), Some(group)).unwrap();
        mode(&at, bits);
        with_effective_user(user, || {
            let (fd, found) = match Walk::new(&at, None, None).unwrap().all().unwrap() {
                Reached::Directory(fd, found) => (fd, found),
                _ => panic!("a directory"),
            };
            let opened = Directory::open(&at, Safety::Ancestors);
            let who = who_can_change(&fd, &found);
            assert_eq!(is_unsafe(&opened), who.is_some(), "{opened:?}");
            who
        })
    };
    // The user database knows neither that user nor that group.
    assert_eq!(who(STRANGER, STRANGER, 0o2755), None);
    let found = who(STRANGER, STRANGER, 0o2775).unwrap();
    assert!(found.contains("members of that group"), "{found}");
    // One of a user who has a group for itself.
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let private = users.lines().find_map(|line| {
        let mut numbers = line.split(':').skip(2).take(2).map(|n| n.parse::<u32>().unwrap());
        let (user, group) = (numbers.next()?, numbers.next()?);
        (user != 0 && user == group && who(user, group, 0o2775).is_none()).then_some(user)
    });
    let Some(user) = private else { return eprintln!("skipped: no user has a group for itself") };
    assert_eq!(who(user, user, 0o770), None);
    assert!(who(user, STRANGER, 0o770).is_some());
    assert!(who(user, user, 0o777).is_some());
    // Somebody else may write, which the mode does not show.
    let entry = |tag: u16, rights: u16, id: u32| {
        [&tag.to_le_bytes()[..], &rights.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    let list = |user: Vec<u8>| {
        let entries =
            [entry(1, 7, !0), user, entry(4, 7, !0), entry(0x10, 7, !0), entry(0x20, 5, !0)];
        [&2u32.to_le_bytes()[..], &entries.concat()].concat()
    };
    let set = |list: &[u8]| {
        rustix::fs::setxattr(&at, "system.posix_acl_access", list, rustix::fs::XattrFlags::empty())
    };
    if let Err(e) = set(&list(entry(2, 7, STRANGER))) {
        return eprintln!("skipped: there are no access control lists here: {e}");
    }
    let found = who(user, user, 0o775).unwrap();
    assert!(found.contains("access control list"), "{found}");
    set(&list(entry(2, 5, STRANGER))).unwrap();
    assert_eq!(who(user, user, 0o775), None);
    set(&list(entry(2, 7, 0))).unwrap();
    assert_eq!(who(user, user, 0o775), None);
}

#[test]
fn members_of_a_group_are_those_in_its_entry_and_users_whose_primary_group_it_is() {
    let users = b"root:x:0:0::/:/bin/sh\nweb:x:1001:1001::/:\nother:x:1002:1002::/:\n";
    let only = |members: &[&str], users: &[u8]| {
        let members: Vec<Vec<u8>> = members.iter().map(|name| name.as_bytes().to_vec()).collect();
        access::has_no_other_member(1001, 1001, b"web", &members, users)
    };
    assert!(only(&[], users) && only(&["web"], users));
    assert!(!only(&["web", "other"], users) && !only(&["other"], users));
    assert!(!only(&[], &[&users[..], b"third:x:1003:1001::/:\n"].concat()));
    // The same user by another name.
    assert!(only(&[], &[&users[..], b"web2:x:1001:1001::/:\n"].concat()));
}

#[test]
fn an_access_control_list_that_is_not_understood_lets_others_write() {
    assert!(access::lets_others_write(&[], 1, 1));
    assert!(access::lets_others_write(&[3, 0, 0, 0], 1, 1));
    assert!(access::lets_others_write(&[2, 0, 0, 0, 1, 0], 1, 1));
    assert!(!access::lets_others_write(&[2, 0, 0, 0], 1, 1));
    // A group.
    let group = |id: u8| [2, 0, 0, 0, 8, 0, 7, 0, id, 0, 0, 0];
    assert!(
        access::lets_others_write(&group(2), 1, 1) && !access::lets_others_write(&group(1), 1, 1)
    );
}
