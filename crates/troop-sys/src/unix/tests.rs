use super::*;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};

const STRANGER: u32 = 64_017;

fn stranger() -> Rights {
    Rights {
        of: Some(Identity { uid: STRANGER, gid: STRANGER, groups: Vec::new() }),
        ..Rights::own()
    }
}

fn own(path: &Path) -> io::Result<(OwnedFd, Option<UnixFile>)> {
    unix(path.to_str().unwrap(), false, false, &Rights::own())
}

fn theirs(path: &Path) -> io::Result<(OwnedFd, Option<UnixFile>)> {
    unix(path.to_str().unwrap(), true, true, &stranger())
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A directory that the stranger reaches, and one in it that is its own.
fn scene() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let its = directory.path().join("its");
    std::fs::create_dir(&its).unwrap();
    std::os::unix::fs::chown(&its, Some(STRANGER), Some(STRANGER)).unwrap();
    (directory, its)
}

fn stale(path: &Path) {
    drop(UnixListener::bind(path).unwrap());
}

#[test]
fn a_live_socket_file_is_respected_and_a_stale_one_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let (live, file) = own(&path).unwrap();
    crate::socket::listen(&live, 8).unwrap();
    assert_eq!(own(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    assert!(file.as_ref().unwrap().is_reached());
    drop((live, file));
    assert!(!path.exists());
    stale(&path);
    let (_again, file) = own(&path).unwrap();
    drop(file);
    assert!(!path.exists());
    std::fs::write(&path, "precious").unwrap();
    assert_eq!(own(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    assert_eq!(
        own(Path::new("/no/such/directory/s")).unwrap_err().kind(),
        io::ErrorKind::PermissionDenied
    );
    for bad in ["/", "/tmp/..", "/tmp/", ".", ""] {
        assert!(own(Path::new(bad)).is_err(), "{bad}");
    }
}

#[test]
fn a_path_may_be_long_and_so_may_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let deep = directory.path().join("d".repeat(120)).join("e".repeat(120));
    std::fs::create_dir_all(&deep).unwrap();
    for name in ["s".to_owned(), "n".repeat(100)] {
        let (socket, file) = own(&deep.join(&name)).unwrap();
        crate::socket::listen(&socket, 8).unwrap();
        assert!(deep.join(&name).exists());
        drop(file);
        assert!(!deep.join(&name).exists());
    }
    assert_eq!(
        own(&deep.join("n".repeat(110))).unwrap_err().raw_os_error(),
        Some(libc::ENAMETOOLONG)
    );
}

#[test]
fn a_file_that_is_not_reached_any_more_is_known_and_that_of_others_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let (_socket, file) = own(&path).unwrap();
    let file = file.unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(!file.is_reached());
    let _theirs = UnixListener::bind(&path).unwrap();
    assert!(!file.is_reached());
    drop(file);
    assert!(path.exists());
}

#[test]
fn everybody_may_connect_where_that_was_asked_for_and_only_there() {
    let directory = tempfile::tempdir().unwrap();
    for all in [false, true] {
        let path = directory.path().join("s");
        let (_socket, _file) = unix(path.to_str().unwrap(), all, all, &Rights::own()).unwrap();
        let mode = std::fs::metadata(&path).unwrap().mode();
        assert_eq!(mode & 0o002 != 0, all, "{mode:o}");
        assert!(!all || mode & 0o666 == 0o666, "{mode:o}");
    }
}

#[test]
fn nothing_is_made_or_removed_where_the_worker_s_user_may_not() {
    if !is_root() {
        return;
    }
    let (directory, _its) = scene();
    let path = directory.path().join("s");
    assert_eq!(theirs(&path).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    assert!(!path.exists());
    stale(&path);
    assert_eq!(theirs(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    assert_eq!(std::fs::metadata(&path).unwrap().uid(), 0);
    // Nor in a sticky directory, where it may make files but not remove those of others.
    let sticky = directory.path().join("sticky");
    std::fs::create_dir(&sticky).unwrap();
    std::fs::set_permissions(&sticky, std::fs::Permissions::from_mode(0o1777)).unwrap();
    stale(&sticky.join("s"));
    std::fs::set_permissions(sticky.join("s"), std::fs::Permissions::from_mode(0o666)).unwrap();
    assert!(theirs(&sticky.join("s")).is_err());
    assert_eq!(std::fs::metadata(sticky.join("s")).unwrap().uid(), 0);
    assert!(theirs(&sticky.join("own")).is_ok());
}

#[test]
fn what_is_made_for_a_user_belongs_to_it() {
    if !is_root() {
        return;
    }
    let (_directory, its) = scene();
    let (socket, file) = theirs(&its.join("s")).unwrap();
    crate::socket::listen(&socket, 8).unwrap();
    let stat = std::fs::metadata(its.join("s")).unwrap();
    assert_eq!((stat.uid(), stat.gid(), stat.mode() & 0o666), (STRANGER, STRANGER, 0o666));
    UnixStream::connect(its.join("s")).unwrap();
    drop(file);
    assert!(!its.join("s").exists());
}

#[test]
fn a_link_is_followed_only_where_it_leads_nowhere_that_its_maker_could_not_go() {
    if !is_root() {
        return;
    }
    let (directory, its) = scene();
    let (secret, open) = (directory.path().join("secret"), directory.path().join("open"));
    for (path, mode) in [(&secret, 0o700), (&open, 0o755)] {
        std::fs::create_dir(path).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let lax = secret.join("lax");
    std::fs::create_dir(&lax).unwrap();
    std::fs::set_permissions(&lax, std::fs::Permissions::from_mode(0o777)).unwrap();
    for (name, target) in [("to-open", &open), ("to-lax", &lax)] {
        symlink(target, its.join(name)).unwrap();
        assert_eq!(
            theirs(&its.join(name).join("s")).unwrap_err().kind(),
            io::ErrorKind::PermissionDenied,
            "{name}"
        );
        // Root on its own account does not follow it either, though it may go anywhere.
        assert_eq!(
            own(&its.join(name).join("s")).unwrap_err().kind(),
            io::ErrorKind::PermissionDenied,
            "{name}"
        );
        assert!(!target.join("s").exists());
    }
    // One that leads to what is its own anyway.
    std::fs::create_dir(its.join("real")).unwrap();
    std::os::unix::fs::chown(its.join("real"), Some(STRANGER), None).unwrap();
    symlink("real", its.join("current")).unwrap();
    assert!(theirs(&its.join("current/s")).is_ok());
    // Root's own links, such as `/var/run`, are followed by everybody.
    symlink(&open, directory.path().join("link")).unwrap();
    assert!(own(&directory.path().join("link/s")).is_ok());
    let strict = Rights { trusted_links_only: true, ..stranger() };
    symlink(&its, directory.path().join("to-its")).unwrap();
    let there = directory.path().join("to-its/s");
    assert!(unix(there.to_str().unwrap(), false, false, &strict).is_ok());
    assert!(unix(its.join("current/s").to_str().unwrap(), false, false, &strict).is_err());
}

#[test]
fn links_that_lead_in_a_circle_end() {
    let directory = tempfile::tempdir().unwrap();
    symlink("b", directory.path().join("a")).unwrap();
    symlink("a", directory.path().join("b")).unwrap();
    assert_eq!(own(&directory.path().join("a/s")).unwrap_err().raw_os_error(), Some(libc::ELOOP));
}

#[test]
fn no_socket_is_made_where_each_process_has_a_place_of_its_own() {
    let (directory, its) = scene();
    let own = std::process::id();
    symlink("/proc/self", its.join("own")).unwrap();
    for place in [
        "/proc/self/cwd/s".to_owned(),
        format!("/proc/{own}/root{}/s", directory.path().display()),
        format!("{}/../../../../../proc/self/cwd/s", directory.path().display()),
        "//proc//self/./cwd/s".to_owned(),
        "/dev/fd/3/s".to_owned(),
        "/proc/s".to_owned(),
        format!("{}/own/s", its.display()),
    ] {
        for rights in [Rights::own(), stranger()] {
            if rights.of.is_some() && !is_root() {
                continue;
            }
            let refused = unix(&place, false, false, &rights).unwrap_err();
            assert!(UnsafePath::is_cause_of(&refused), "{place}: {refused}");
        }
    }
}

#[test]
fn a_look_in_the_background_tells_the_next_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let (_socket, file) = own(&path).unwrap();
    let file = file.unwrap();
    assert!(file.was_reached());
    std::fs::remove_file(&path).unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while file.was_reached() {
        assert!(std::time::Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(!file.is_reached());
}
