use super::*;
use std::io::Read;
use std::os::fd::AsFd;

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
        descriptor_limit: None,
        limits: Vec::new(),
        umask: None,
        nice: None,
        cpus: Vec::new(),
        cgroup: None,
    }
}

#[test]
fn limits_umask_niceness_and_cpus_are_the_childs() {
    let script = "ulimit -Sn; ulimit -Hn; ulimit -c; umask; nice; grep Cpus_allowed_list /proc/self/status";
    let limits = vec![(libc::RLIMIT_NOFILE, 100, 200), (libc::RLIMIT_CORE, 0, 0)];
    let (text, _) = output(Command { limits, umask: Some(0o027), nice: Some(5), cpus: vec![0], ..command(script) });
    let before: i32 =
        String::from_utf8(std::process::Command::new("nice").output().unwrap().stdout).unwrap().trim().parse().unwrap();
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    assert_eq!(lines[..4], ["100", "200", "0", "0027"]);
    assert_eq!((lines[4], lines[5]), (5.max(before).to_string().as_str(), "Cpus_allowed_list:\t0"));
    let refused = spawn(&Command { cpus: vec![MOST_CPUS - 1], ..command("true") }).unwrap_err();
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
fn no_descriptor_leaks_but_the_ones_meant_for_the_child() {
    // An inheritable descriptor, as a careless host program leaves them.
    let careless = std::fs::File::open("/dev/null").unwrap();
    rustix::io::fcntl_setfd(&careless, rustix::io::FdFlags::empty()).unwrap();
    let mut c = command("ls /proc/$$/fd");
    c.fds.push((5, careless.as_fd()));
    assert_eq!(output(c).0, "1\n5\n");
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
    assert_eq!((numbers[0], numbers[1], numbers[2]), (numbers[3], numbers[3], "0"), "group, session, terminal, process");
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
    assert!(text.contains("NoNewPrivs:\t1") && text.lines().any(|line| line.trim_end() == "Groups:"), "{text}");
}
