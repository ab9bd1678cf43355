//! Turns a setup into a command line and an environment.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use troop_sys::spawn;
use troop_sys::tree::{self, Token};

use super::{CHANNEL_FD, CHANNEL_NUMBER, InspectPort, SERIALIZATION, Setup, UNIQUE_ID};
use crate::activation::ActivationSocket;
use crate::error::{Error, Result};
use crate::nesting;

/// Variables about this process's user, its login and its directories.
const PERSONAL: [&str; 25] = [
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "MAIL",
    "XDG_RUNTIME_DIR",
    "XDG_CONFIG_HOME",
    "XDG_CACHE_HOME",
    "XDG_DATA_HOME",
    "XDG_STATE_HOME",
    "DBUS_SESSION_BUS_ADDRESS",
    "SSH_AUTH_SOCK",
    "XAUTHORITY",
    "GNUPGHOME",
    "GPG_AGENT_INFO",
    "KRB5CCNAME",
    "SSH_AGENT_PID",
    "SSH_CLIENT",
    "SSH_CONNECTION",
    "SSH_TTY",
    "SUDO_COMMAND",
    "SUDO_GID",
    "SUDO_UID",
    "SUDO_USER",
    "XDG_SESSION_ID",
];

/// Variables that concern one process alone, which its children must not inherit.
const OF_ONE_PROCESS: [&str; 9] = [
    UNIQUE_ID,
    CHANNEL_FD,
    SERIALIZATION,
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    nesting::ACTIVATED,
    tree::VARIABLE,
];

/// The command line and environment of one worker.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) candidates: Vec<CString>,
    pub(crate) argv: Vec<CString>,
    pub(crate) env: Vec<CString>,
    pub(crate) program: String,
    /// By which the processes are found that it starts.
    pub(crate) token: Option<Token>,
}

impl Setup {
    pub(super) fn is_node(&self) -> bool {
        let name = self.get_program().and_then(Path::file_name);
        name.is_some_and(|name| name == "node" || name == "nodejs")
    }

    /// Whether a worker certainly speaks Node's protocol once its program runs.
    pub(crate) fn expect_ipc(&self) -> bool {
        // Without a script Node does not check whether it is a worker.
        !self.has_activation() && !self.is_alone() && self.is_node() && self.script.is_some()
    }

    /// The inspector's port: given ones are used, automatic ones count up over the life of the
    /// primary.
    fn inspector(&self, env: &BTreeMap<OsString, OsString>, count: &mut u32) -> Option<u16> {
        const FLAGS: [&str; 4] = ["--inspect", "--inspect-brk", "--inspect-port", "--debug-port"];
        let options = env
            .get(OsStr::new("NODE_OPTIONS"))
            .map(|o| o.to_string_lossy().into_owned())
            .unwrap_or_default();
        let flags: Vec<String> =
            self.get_exec_argv().iter().map(|a| a.to_string_lossy().into_owned()).collect();
        let mut relevant = flags
            .iter()
            .map(String::as_str)
            .chain(options.split_whitespace())
            .filter(|a| FLAGS.iter().any(|f| a.starts_with(f)))
            .peekable();
        relevant.peek()?;
        if let InspectPort::Fixed(port) = self.get_inspect_port() {
            return Some(port);
        }
        let base = relevant
            .filter_map(|a| a.split_once('='))
            .filter_map(|(_, at)| at.rsplit(':').next()?.parse::<u32>().ok())
            .next_back();
        if base == Some(0) {
            // Each finds a free one by itself. (Node counts up from 0, and its workers die of ports
            // below 1024.)
            return Some(0);
        }
        *count += 1;
        let port = base.unwrap_or(9229) + *count;
        Some(
            u16::try_from(if port > 65535 { 1024 + (port - 65536) % 64512 } else { port })
                .unwrap_or(9229),
        )
    }

    /// Returns the variables that are the same for all workers.
    pub(crate) fn environment(
        &self,
        extra: &BTreeMap<OsString, OsString>,
    ) -> BTreeMap<OsString, OsString> {
        let mut env: BTreeMap<OsString, OsString> = std::env::vars_os().collect();
        if self.is_other_user() {
            env.retain(|name, _| !PERSONAL.iter().any(|personal| name == personal));
        }
        for (name, value) in &self.env {
            match value {
                Some(value) => drop(env.insert(name.clone(), value.clone())),
                None => drop(env.remove(name)),
            }
        }
        env.extend(extra.clone());
        // A worker that is itself a primary must not pass its own identity on.
        for name in OF_ONE_PROCESS {
            env.remove(OsStr::new(name));
        }
        env
    }

    /// Returns a process with the user, directory and limits of workers. The caller sets its
    /// program and descriptors.
    pub(crate) fn command(
        &self,
        slot: Option<u32>,
        env: Vec<CString>,
    ) -> Result<spawn::Command<'static>> {
        let cwd =
            self.cwd.as_deref().map(|cwd| CString::new(cwd.as_os_str().as_bytes())).transpose();
        Ok(spawn::Command {
            candidates: Vec::new(),
            argv: Vec::new(),
            env,
            pid_variable: None,
            death_signal: 0,
            cwd: cwd
                .map_err(|_| Error::Settings("the working directory contains a NUL byte".into()))?,
            fds: Vec::new(),
            uid: self.uid,
            gid: self.gid,
            groups: self.groups.clone(),
            own_group: self.get_own_process_group(),
            own_session: self.is_other_user(),
            no_new_privileges: self.get_no_new_privileges(),
            sandbox: match self.get_sandbox() {
                Some(sandbox) => sandbox.prepare(self.cwd.as_deref(), self.readable_preload())?,
                None => Default::default(),
            },
            descriptor_limit: None,
            limits: self.raw_limits(),
            umask: self.umask,
            nice: self.nice,
            cpus: self.cpus_of(slot),
            cgroup: None,
            is_sibling: false,
        })
    }

    /// Returns the command line and environment of the worker with this id.
    pub(crate) fn prepare(
        &self,
        id: u32,
        slot: Option<u32>,
        extra: &BTreeMap<OsString, OsString>,
        notify: Option<&OsStr>,
        inspectors: &mut u32,
    ) -> Result<Prepared> {
        self.check()?;
        nesting::may_fork(self, extra)?;
        let mut env = self.environment(extra);
        for name in self.get_slot_variables() {
            // Not the slot of this process, which may itself be a worker.
            env.remove(name);
            if let Some(slot) = slot {
                env.insert(name.to_owned(), slot.to_string().into());
            }
        }
        for (name, first) in self.get_counting_variables() {
            let number = first.saturating_add(slot.unwrap_or_default().into());
            env.insert(name.to_owned(), number.to_string().into());
        }
        env.insert(nesting::DEPTH.into(), nesting::depth_of_workers().to_string().into());
        if let Some(address) = notify {
            env.insert("NOTIFY_SOCKET".into(), address.to_owned());
        }
        if let Some(sockets) = &self.cluster.activation {
            env.extend(activation(sockets));
            env.insert(nesting::ACTIVATED.into(), "1".into());
        } else {
            if self.is_alone() {
                env.remove(OsStr::new(UNIQUE_ID));
            } else {
                env.insert(UNIQUE_ID.into(), id.to_string().into());
            }
            env.insert(CHANNEL_FD.into(), CHANNEL_NUMBER.to_string().into());
            env.insert(SERIALIZATION.into(), "json".into());
        }
        let token = self.has_tree().then(Token::random).transpose();
        let token = token.map_err(Error::io("get a random number"))?;
        if let Some(token) = &token {
            // They belong to the tree in which this process runs, too.
            let outer = tree::outer_variable(std::env::var_os(tree::VARIABLE).as_deref());
            env.extend(outer.map(|name| (name.into(), "".into())));
            env.insert(tree::VARIABLE.into(), token.as_str().into());
        }
        self.add_preload(&mut env);
        if let Some(profile) = env.get_mut(OsStr::new("LLVM_PROFILE_FILE"))
            && !profile.as_bytes().windows(2).any(|w| w == b"%p")
        {
            *profile = per_process(profile);
        }
        let (name, candidates) = match self.get_program() {
            Some(path) => {
                let search_path = env.get(OsStr::new("PATH")).map(OsString::as_os_str);
                (path.as_os_str().to_owned(), spawn::search(&text(path)?, search_path))
            }
            // The running image, even if its file was replaced.
            None => {
                (std::env::args_os().next().unwrap_or_default(), vec![c"/proc/self/exe".to_owned()])
            }
        };
        let mut exec_argv = self.get_exec_argv().to_vec();
        if self.is_node() {
            let any = |prefix: &str| {
                exec_argv.iter().any(|a| a.as_bytes().starts_with(prefix.as_bytes()))
            };
            if any("--prof") && !any("--logfile=") {
                exec_argv.push("--logfile=v8-%p.log".into());
            }
            if let Some(port) = self.inspector(&env, inspectors) {
                exec_argv.push(format!("--inspect-port={port}").into());
            }
        }
        let argv = std::iter::once(name.clone())
            .chain(exec_argv)
            .chain(self.script.clone().map(PathBuf::into_os_string))
            .chain(self.get_args().iter().cloned())
            .map(text)
            .collect::<Result<_>>()?;
        Ok(Prepared {
            candidates,
            argv,
            env: texts(env)?,
            program: name.to_string_lossy().into_owned(),
            token,
        })
    }
}

/// Returns the variables that describe passed sockets: systemd's and Einhorn's. (The process itself
/// sets `LISTEN_PID`.)
fn activation(sockets: &[ActivationSocket]) -> Vec<(OsString, OsString)> {
    let names: Vec<&str> = sockets.iter().map(|socket| socket.name.as_str()).collect();
    let count = sockets.len().to_string();
    let mut env: Vec<(OsString, OsString)> = vec![
        ("LISTEN_FDS".into(), count.clone().into()),
        ("LISTEN_FDNAMES".into(), names.join(":").into()),
        ("EINHORN_FD_COUNT".into(), count.into()),
    ];
    env.extend(
        (0..sockets.len())
            .map(|at| (format!("EINHORN_FD_{at}").into(), (at + 3).to_string().into())),
    );
    env
}

/// Puts the process id into a profile's file name, so that workers do not overwrite each other's.
fn per_process(file: &OsStr) -> OsString {
    let path = Path::new(file);
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push("-%p");
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name).into_os_string()
}

/// `NAME=value` for each variable.
pub(crate) fn texts(env: BTreeMap<OsString, OsString>) -> Result<Vec<CString>> {
    env.into_iter().map(|(name, value)| text([name, value].join(OsStr::new("=")))).collect()
}

fn text(s: impl Into<OsString>) -> Result<CString> {
    let s: OsString = s.into();
    let shown = s.to_string_lossy().into_owned();
    CString::new(s.into_vec())
        .map_err(|_| Error::Settings(format!("{shown:?} contains a NUL byte")))
}

#[cfg(test)]
mod tests {
    use super::super::Stdio;
    use super::*;

    fn argv(setup: &Setup, inspectors: &mut u32) -> Vec<String> {
        let prepared = setup.prepare(1, None, &BTreeMap::new(), None, inspectors).unwrap();
        prepared.argv.iter().map(|a| a.to_str().unwrap().to_owned()).collect()
    }

    fn node(exec_argv: &[&str]) -> Setup {
        Setup::new().script("a.js").args(["x"]).exec_argv(exec_argv.iter().copied())
    }

    #[test]
    fn settings_that_a_later_setup_does_not_mention_stay() {
        let setup = Setup::new().script("a.js").args(["x"]).env("A", "1").silent(true);
        let setup = setup.merge(Setup::new().env("B", "2").args(["y"]));
        assert_eq!(setup.get_script(), Some(Path::new("a.js")));
        assert_eq!(setup.get_args().as_ref(), ["y"]);
        let names: Vec<_> = setup.get_envs().map(|(name, _)| name).collect();
        assert_eq!(names, ["A", "B"]);
        assert_eq!(setup.stdio(), [Stdio::Inherit, Stdio::Pipe, Stdio::Pipe]);
    }

    #[test]
    fn a_later_script_runs_under_the_interpreter_of_an_earlier_setup() {
        let setup = Setup::new().program("bun").merge(Setup::new().script("b.js"));
        assert_eq!(setup.get_program(), Some(Path::new("bun")));
        assert_eq!(Setup::new().script("b.js").get_program(), Some(Path::new("node")));
    }

    #[test]
    fn the_last_word_on_a_variable_counts() {
        let value = |setup: &Setup| setup.environment(&BTreeMap::new()).remove(OsStr::new("A"));
        let removed = Setup::new().env("A", "1").merge(Setup::new().env_remove("A"));
        assert_eq!(value(&removed), None);
        assert_eq!(value(&removed.merge(Setup::new().env("A", "2"))), Some("2".into()));
    }

    #[test]
    fn a_setup_that_discards_earlier_ones_counts_alone() {
        let mut earlier = Setup::new().program("x").env("A", "1").own_process_group(false);
        earlier.cluster.is_supervised = true;
        let setup = earlier.merge(Setup::new().nice(5).discard_earlier());
        assert_eq!((setup.get_program(), setup.get_envs().count()), (None, 0));
        assert_eq!((setup.get_nice(), setup.get_own_process_group()), (Some(5), true));
    }

    #[test]
    fn node_workers_get_profile_files_and_inspector_ports_of_their_own() {
        let mut count = 0;
        assert_eq!(
            argv(&node(&["--prof"]), &mut count),
            ["node", "--prof", "--logfile=v8-%p.log", "a.js", "x"]
        );
        assert_eq!(
            argv(&node(&["--prof", "--logfile=mine"]), &mut count),
            ["node", "--prof", "--logfile=mine", "a.js", "x"]
        );
        let setup = node(&["--inspect=127.0.0.1:9400"]);
        assert_eq!(argv(&setup, &mut count)[2], "--inspect-port=9401");
        assert_eq!(argv(&setup, &mut count)[2], "--inspect-port=9402");
        assert_eq!(argv(&node(&["--inspect-brk"]), &mut count)[2], "--inspect-port=9232");
        assert_eq!(argv(&node(&["--inspect=0"]), &mut count)[2], "--inspect-port=0");
        let fixed = node(&["--inspect"]).inspect_port(InspectPort::Fixed(9500));
        assert_eq!(argv(&fixed, &mut count)[2], "--inspect-port=9500");
    }

    #[test]
    fn llvm_profiles_are_per_process() {
        assert_eq!(per_process(OsStr::new("/tmp/a.profraw")), OsString::from("/tmp/a-%p.profraw"));
        assert_eq!(per_process(OsStr::new("default")), OsString::from("default-%p"));
    }

    #[test]
    fn the_identity_cannot_be_overridden() {
        let setup = Setup::new().program("x").env("NODE_UNIQUE_ID", "99");
        let prepared = setup.prepare(7, None, &BTreeMap::new(), None, &mut 0).unwrap();
        let ids: Vec<_> =
            prepared.env.iter().filter(|e| e.to_bytes().starts_with(b"NODE_UNIQUE_ID=")).collect();
        assert_eq!(ids, [&c"NODE_UNIQUE_ID=7".to_owned()]);
        // Alone it has none, but a channel.
        let alone = setup.alone(true).prepare(7, None, &BTreeMap::new(), None, &mut 0).unwrap();
        let has = |name: &[u8]| alone.env.iter().any(|entry| entry.to_bytes().starts_with(name));
        assert!(!has(b"NODE_UNIQUE_ID=") && has(b"NODE_CHANNEL_FD="));
    }
}
