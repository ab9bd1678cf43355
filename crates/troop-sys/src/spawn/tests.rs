use super::*;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::PathBuf;

use crate::sandbox::SystemCalls;

fn command(script: &str) -> Command<'static> {
    let text = |s: &str| CString::new(s).unwrap();
    Command {
        candidates: search(c"sh", Some("/nowhere:/usr/bin:/bin".as_ref())),
        argv: vec![text("sh"), text("-c"), text(script)],
        env: vec![text("A=b"), text("PATH=/usr/bin:/bin")],
        cwd: None,
        pid_variable: None,
        death_signal: 0,
        fds: Vec::new(),
        uid: None,
        gid: None,
        groups: None,
        own_group: false,
        own_session: false,
        no_new_privileges: false,
        sandbox: Sandbox::default(),
        descriptor_limit: None,
        limits: Vec::new(),
        umask: None,
        nice: None,
        cpus: Vec::new(),
        cgroup: None,
        is_sibling: false,
    }
}

#[test]
fn limits_umask_niceness_and_cpus_are_the_childs() {
    let script =
        "ulimit -Sn; ulimit -Hn; ulimit -c; umask; nice; grep Cpus_allowed_list /proc/self/status";
    let limits = vec![(libc::RLIMIT_NOFILE, 100, 200), (libc::RLIMIT_CORE, 0, 0)];
    let (text, _) = output(Command {
        limits,
        umask: Some(0o027),
        nice: Some(5),
        cpus: vec![0],
        ..command(script)
    });
    let before: i32 =
        String::from_utf8(std::process::Command::new("nice").output().unwrap().stdout)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    assert_eq!(lines[..4], ["100", "200", "0", "0027"]);
    assert_eq!((lines[4], lines[5]), (5.max(before).to_string().as_str(), "Cpus_allowed_list:\t0"));
    let refused = spawn(&Command { cpus: vec![MAX_CPUS - 1], ..command("true") }).unwrap_err();
    assert_eq!(refused.step, Step::Cpus);
}

fn output(command: Command<'_>) -> (String, crate::process::Exit) {
    let (mut read, write) = std::io::pipe().unwrap();
    let fds = command.fds.iter().copied().chain([(1, write.as_fd())]).collect();
    let child = spawn(&Command { fds, ..command }).unwrap();
    drop(write);
    let mut text = String::new();
    read.read_to_string(&mut text).unwrap();
    (text, crate::process::reap(child.pidfd.as_fd()).unwrap())
}

#[test]
fn a_program_runs_with_its_own_environment_and_directory() {
    let mut c = command("echo $A; pwd; exit 3");
    c.cwd = Some(c"/tmp".to_owned());
    assert_eq!(output(c), ("b\n/tmp\n".to_owned(), crate::process::Exit::Code(3)));
}

#[test]
fn the_child_inherits_only_the_descriptors_that_it_is_given() {
    // An inheritable descriptor, as a host program may leave it.
    let careless = std::fs::File::open("/dev/null").unwrap();
    rustix::io::fcntl_setfd(&careless, rustix::io::FdFlags::empty()).unwrap();
    let mut c = command("ls /proc/$$/fd");
    c.fds.push((5, careless.as_fd()));
    assert_eq!(output(c).0, "1\n5\n");
}

/// Waits until something can be read from a descriptor.
fn await_input(fd: impl AsFd) -> bool {
    crate::keeping::wait(&[fd.as_fd()], Some(20_000)).unwrap()[0]
}

#[test]
fn a_start_does_not_wait_for_sockets_that_linger_of_which_the_child_has_the_last_copies() {
    let (own, _peer) = crate::interrupt::tests::lingering();
    let (far, _far_peer) = crate::interrupt::tests::lingering();
    let (queued, _other) = crate::interrupt::tests::lingering();
    // Of few descriptors with low numbers.
    let far = (rustix::io::fcntl_dupfd_cloexec(&far, 1000).unwrap(), drop(far)).0;
    let (channel, end) = std::os::unix::net::UnixStream::pair().unwrap();
    crate::fdpass::send(channel.as_fd(), b"x", &[queued.as_fd()]).unwrap();
    // It waits where it enters its control group, until somebody reads.
    let (mut gate, mut full) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&full, true).unwrap();
    let mut len = 0;
    while std::io::Write::write(&mut full, &[0; 4096]).is_ok_and(|written| written == 4096) {
        len += 4096;
    }
    rustix::io::ioctl_fionbio(&full, false).unwrap();
    let (sender, threads) = std::sync::mpsc::channel();
    let child = std::thread::scope(|scope| {
        let start = scope.spawn(|| {
            sender.send(rustix::thread::gettid()).unwrap();
            spawn(&Command { cgroup: Some(full.as_fd()), ..command("exit 7") }).unwrap()
        });
        let thread = threads.recv().unwrap().as_raw_nonzero();
        let children = format!("/proc/self/task/{thread}/children");
        while std::fs::read_to_string(&children).unwrap().is_empty() {
            std::thread::yield_now();
        }
        drop((own, far, queued, channel, end));
        gate.read_exact(&mut vec![0; len]).unwrap();
        start.join().unwrap()
    });
    let has_ended = await_input(&child.pidfd);
    let _ = rustix::process::pidfd_send_signal(&child.pidfd, rustix::process::Signal::KILL);
    let exit = crate::process::reap(child.pidfd.as_fd()).unwrap();
    assert_eq!((has_ended, exit), (true, crate::process::Exit::Code(7)));
}

#[test]
fn a_child_has_the_signals_that_its_parent_ignores_and_no_timer() {
    // A shell that starts another process blocks all signals for a moment.
    let script = "while read line; do case $line in Sig*) echo \"$line\";; esac; done < /proc/$$/status; sleep 0.1; exit 7";
    let (text, exit) = output(command(script));
    let own = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let masked = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        // SIGALRM alone.
        u64::from_str_radix(line.trim(), 16).unwrap() >> (libc::SIGALRM - 1) & 1
    };
    for name in ["SigBlk:", "SigIgn:", "SigCgt:"] {
        assert_eq!(masked(&text, name), masked(&own, name), "{name}");
    }
    assert_eq!(exit, crate::process::Exit::Code(7));
}

#[test]
fn sources_and_targets_may_overlap() {
    let (mut r1, w1) = std::io::pipe().unwrap();
    let (mut r2, w2) = std::io::pipe().unwrap();
    let (n1, n2) = (w1.as_raw_fd(), w2.as_raw_fd());
    let mut c = command(&format!("echo one >&{n2}; echo two >&{n1}"));
    c.fds.push((n2, w1.as_fd()));
    c.fds.push((n1, w2.as_fd()));
    let child = spawn(&c).unwrap();
    drop(c);
    drop((w1, w2));
    let (mut one, mut two) = (String::new(), String::new());
    r1.read_to_string(&mut one).unwrap();
    r2.read_to_string(&mut two).unwrap();
    crate::process::reap(child.pidfd.as_fd()).unwrap();
    assert_eq!((one.as_str(), two.as_str()), ("one\n", "two\n"));
}

#[test]
fn failures_name_the_step_and_the_cause() {
    let mut c = command("true");
    c.cwd = Some(c"/nowhere".to_owned());
    let e = spawn(&c).unwrap_err();
    assert_eq!((e.step, e.source.raw_os_error()), (Step::Directory, Some(libc::ENOENT)));
    let mut c = command("true");
    c.candidates = search(c"no-such-program", Some("/usr/bin:/bin".as_ref()));
    let e = spawn(&c).unwrap_err();
    assert_eq!((e.step, e.source.raw_os_error()), (Step::Exec, Some(libc::ENOENT)));
    let mut c = command("true");
    c.candidates = vec![c"/etc/passwd".to_owned()];
    let e = spawn(&c).unwrap_err();
    assert_eq!((e.step, e.source.raw_os_error()), (Step::Exec, Some(libc::EACCES)));
}

#[test]
fn privileges_are_dropped_in_full() {
    if !rustix::process::getuid().is_root() {
        return;
    }
    let mut c = command("id -u; id -g; id -G");
    (c.uid, c.gid) = (Some(65534), Some(65533));
    assert_eq!(output(c).0, "65534\n65533\n65533\n");
    let mut c = command("id -G");
    (c.uid, c.gid, c.groups) = (Some(65534), Some(65534), Some(vec![4, 5]));
    assert_eq!(output(c).0, "65534 4 5\n");
}

#[test]
fn a_session_of_its_own_has_no_terminal() {
    let mut c = command("cut -d' ' -f5-7 /proc/self/stat; echo $$");
    c.own_session = true;
    let text = output(c).0;
    let numbers: Vec<_> = text.split_whitespace().collect();
    assert_eq!(
        (numbers[0], numbers[1], numbers[2]),
        (numbers[3], numbers[3], "0"),
        "group, session, terminal, process"
    );
}

#[test]
fn another_user_has_no_capabilities_and_no_way_to_any() {
    if !rustix::process::getuid().is_root() {
        return;
    }
    let mut c = command("grep -E '^(Cap|NoNewPrivs|Groups)' /proc/self/status");
    (c.uid, c.gid, c.no_new_privileges) = (Some(65534), Some(65534), true);
    let text = output(c).0;
    for line in text.lines().filter(|line| line.starts_with("Cap")) {
        assert_eq!(line.split_whitespace().nth(1), Some("0000000000000000"), "{text}");
    }
    assert!(
        text.contains("NoNewPrivs:\t1") && text.lines().any(|line| line.trim_end() == "Groups:"),
        "{text}"
    );
}

/// Runs a script in a sandbox, as a user without privileges, and returns its output.
fn confined(sandbox: Sandbox, script: &str) -> String {
    let mut c = command(script);
    (c.sandbox, c.no_new_privileges) = (sandbox, true);
    output(c).0
}

#[test]
fn a_sandbox_leaves_only_the_files_that_it_names() {
    if let Some(missing) = crate::sandbox::landlock_missing() {
        eprintln!("skipped: spawn::a_sandbox_leaves_only_the_files_that_it_names: {missing}");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().canonicalize().unwrap();
    for name in ["open", "closed"] {
        std::fs::create_dir(root.join(name)).unwrap();
        std::fs::write(root.join(name).join("file"), format!("{name}\n")).unwrap();
    }
    let at = root.display();
    let script = format!(
        "cd {at}; cat open/file closed/file 2>&1 | sed 's/.*: //'; for d in open closed; do (echo x > $d/new) 2>/dev/null && echo wrote $d; \
         (: > $d/file) 2>/dev/null && echo emptied $d; rm -f $d/file 2>/dev/null && echo removed $d; done; echo x > /dev/null && echo null"
    );
    let system: Vec<_> = ["/usr", "/lib", "/lib64", "/bin", "/etc"]
        .map(PathBuf::from)
        .into_iter()
        .filter(|p| p.exists())
        .collect();
    let open = vec![root.join("open")];
    let of = |read: Option<&[PathBuf]>, write: Option<&[PathBuf]>| {
        Sandbox::default().files(read, write, false).unwrap()
    };
    // With `read` only, nothing can be changed.
    let read = [system.clone(), open.clone()].concat();
    assert_eq!(confined(of(Some(&read), None), &script), "open\nPermission denied\nnull\n");
    // With `write` only, everything can be read.
    assert_eq!(confined(of(None, Some(&[])), &script), "open\nclosed\nnull\n");
    assert_eq!(
        confined(of(None, Some(&open)), &script),
        "open\nclosed\nwrote open\nemptied open\nremoved open\nnull\n"
    );
    // Files that it has written can be executed only where it may also read.
    std::fs::write(root.join("open/file"), "open\n").unwrap();
    let program = format!(
        "printf '#!/bin/sh\\necho ran' > {at}/open/p; chmod 755 {at}/open/p; {at}/open/p 2>/dev/null || echo $?"
    );
    assert_eq!(confined(of(Some(&system), Some(&open)), &program), "126\n");
    assert_eq!(confined(of(Some(&read), Some(&open)), &program), "ran\n");
    // The program itself must be there to be executed.
    let mut outside = command("true");
    (outside.sandbox, outside.no_new_privileges) = (of(Some(&open), None), true);
    let e = spawn(&outside).unwrap_err();
    assert_eq!((e.step, e.source.raw_os_error()), (Step::Exec, Some(libc::EACCES)));
    // The running image must be readable too, whatever name executes it.
    let image = || {
        let mut c = command("");
        (c.candidates, c.no_new_privileges) = (vec![c"/proc/self/exe".to_owned()], true);
        c.argv = ["program", "--list", "--format", "terse"]
            .map(|arg| CString::new(arg).unwrap())
            .to_vec();
        c
    };
    let mut outside = image();
    outside.sandbox = of(Some(&system), None);
    assert_eq!(spawn(&outside).unwrap_err().source.raw_os_error(), Some(libc::EACCES));
    let mut inside = image();
    inside.sandbox =
        of(Some(&[system.clone(), vec![std::env::current_exe().unwrap()]].concat()), None);
    assert!(output(inside).0.contains("a_sandbox_leaves_only_the_files_that_it_names"));
    // Paths through a directory that the worker can change are rejected, because it could put a
    // link there.
    std::os::unix::fs::symlink("/", root.join("open/link")).unwrap();
    let link = [root.join("open"), root.join("open/link")];
    assert_eq!(
        confined(of(None, Some(&link)), &format!("echo x > {at}/closed/file 2>&1 || echo kept")),
        "kept\n"
    );
    assert!(Sandbox::default().files(Some(&link[1..]), Some(&open), false).is_err());
    let nowhere = [PathBuf::from("/no/such/directory")];
    let e = Sandbox::default().files(Some(&nowhere), None, false).unwrap_err();
    assert!(e.to_string().starts_with("/no/such/directory: "), "{e}");
}

#[test]
fn a_sandbox_denies_system_calls() {
    if let Some(missing) = crate::sandbox::seccomp_missing() {
        eprintln!("skipped: spawn::a_sandbox_denies_system_calls: {missing}");
        return;
    }
    let sandbox = Sandbox::default().deny(&SystemCalls::ALL.into(), false).unwrap();
    let script = "grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status; unshare --user true 2>&1 | sed 's/.*: //'; echo done | cat";
    assert_eq!(
        confined(sandbox, script),
        "NoNewPrivs:\t1\nSeccomp:\t2\nOperation not permitted\ndone\n"
    );
    let of_one = Sandbox::default().deny(&[SystemCalls::Keyring].into(), false).unwrap();
    let allowed = "unshare --user echo done 2>&1";
    assert_eq!(confined(of_one, allowed), confined(Sandbox::default(), allowed));
}
