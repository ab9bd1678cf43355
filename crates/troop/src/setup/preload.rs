//! A script that Node loads into workers before their program, which does not notice.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::Setup;

/// Node's variable for options.
const NODE_OPTIONS: &str = "NODE_OPTIONS";
/// What stood in it before, after an `=`, for the script, which puts it back. Empty if there was
/// no such variable.
const GIVEN_OPTIONS: &str = "TROOP_NODE_OPTIONS";

/// Options with which Node may not read the script, or with which it takes `NODE_OPTIONS` from a
/// file, if there is no such variable.
const PERMISSIONS: [&str; 7] = [
    "--env-file",
    "--experimental-policy",
    "--policy-integrity",
    "--permission",
    "--experimental-permission",
    "--experimental-config-file",
    "--experimental-default-config-file",
];

impl Setup {
    /// Returns the script that Node loads into workers before their program; see
    /// [`Setup::preload`].
    #[must_use]
    pub fn get_preload(&self) -> Option<&Path> {
        self.preload.as_deref().filter(|path| !path.as_os_str().is_empty())
    }

    /// Whether Node's permission model keeps workers from listening themselves, as Node 25 and newer
    /// do with `--permission` and without `--allow-net`. What the primary accepts reaches them.
    pub(crate) fn is_kept_from_listening(&self) -> bool {
        let env = self.environment(&BTreeMap::new());
        let options = env.get(OsStr::new(NODE_OPTIONS)).map(|options| options.to_string_lossy());
        let options = options.unwrap_or_default();
        let given = self.get_exec_argv().iter().map(|option| option.to_string_lossy());
        let all: Vec<_> = given.chain(options.split_whitespace().map(Into::into)).collect();
        all.iter().any(|option| option == "--permission")
            && !all.iter().any(|option| option.starts_with("--allow-net"))
    }

    /// Says why the script of [`Setup::preload`] is not loaded into workers with these settings.
    /// `None` if it is, or if there is none.
    #[must_use]
    pub fn preload_obstacle(&self) -> Option<String> {
        let path = self.get_preload().filter(|_| self.expect_ipc())?;
        let env = self.environment(&BTreeMap::new());
        let obstacle = self
            .obstacle(path, env.get(OsStr::new(NODE_OPTIONS)))
            .or_else(|| self.unreadable(path));
        obstacle.map(|why| format!("{} is not loaded into workers: {why}", path.display()))
    }

    /// The script, if workers load it.
    pub(super) fn readable_preload(&self) -> Option<&Path> {
        let path = self.get_preload().filter(|_| self.expect_ipc())?;
        self.obstacle(path, None).is_none().then_some(path)
    }

    fn obstacle(&self, path: &Path, options: Option<&OsString>) -> Option<String> {
        let options = options.map(|options| options.to_string_lossy()).unwrap_or_default();
        let mut all = self.get_exec_argv().iter().map(|option| option.to_string_lossy());
        let restricted = all
            .find(|option| PERMISSIONS.iter().any(|name| option.starts_with(name)))
            .map(|option| option.into_owned())
            .or_else(|| {
                let mut words = options.split_whitespace();
                words
                    .find(|word| PERMISSIONS.iter().any(|name| word.starts_with(name)))
                    .map(Into::into)
            });
        if let Some(option) = restricted {
            return Some(format!("node cannot be told to load it with {option}"));
        }
        if path.as_os_str().as_bytes().iter().any(u8::is_ascii_control) {
            return Some("its path has control characters".into());
        }
        if self.is_writable(path) {
            return Some("the sandbox lets workers write there".into());
        }
        (!path.is_file()).then(|| "there is no such file".into())
    }

    /// Why workers of another user cannot read the script.
    fn unreadable(&self, path: &Path) -> Option<String> {
        let user = self.other_user()?;
        let e = user.with_rights(|| std::fs::File::open(path).map(drop)).err()?;
        Some(format!("user {} cannot read it: {e}", user.uid))
    }

    /// Whether a worker could exchange the script, because its sandbox lets it.
    fn is_writable(&self, path: &Path) -> bool {
        let written = self.get_sandbox().and_then(|sandbox| sandbox.write.as_ref());
        written.into_iter().flatten().any(|written| {
            let written =
                self.cwd.as_deref().map_or_else(|| written.clone(), |cwd| cwd.join(written));
            path.starts_with(written.canonicalize().unwrap_or(written))
        })
    }

    /// Has Node load the script, if nothing is in the way.
    pub(super) fn add_preload(&self, env: &mut BTreeMap<OsString, OsString>) {
        env.remove(OsStr::new(GIVEN_OPTIONS));
        let Some(path) = self.get_preload().filter(|_| self.expect_ipc()) else { return };
        let given = env.get(OsStr::new(NODE_OPTIONS)).cloned();
        if self.obstacle(path, given.as_ref()).is_some() {
            return;
        }
        let mut options = OsString::from("--require \"");
        for byte in path.as_os_str().as_bytes() {
            if matches!(byte, b'"' | b'\\') {
                options.push("\\");
            }
            options.push(OsStr::from_bytes(&[*byte]));
        }
        options.push("\"");
        let mut kept = OsString::new();
        if let Some(given) = given {
            options.push(" ");
            options.push(&given);
            kept.push("=");
            kept.push(given);
        }
        env.insert(NODE_OPTIONS.into(), options);
        env.insert(GIVEN_OPTIONS.into(), kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(setup: &Setup) -> BTreeMap<String, String> {
        let prepared = setup.prepare(1, None, &BTreeMap::new(), None, &mut 0).unwrap();
        let text = |entry: &std::ffi::CString| entry.to_str().unwrap().to_owned();
        let pairs = prepared.env.iter().map(text);
        pairs.filter_map(|pair| pair.split_once('=').map(|(n, v)| (n.into(), v.into()))).collect()
    }

    #[test]
    fn node_workers_load_it_and_others_get_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("a \"quoted\" name.js");
        std::fs::write(&script, "").unwrap();
        let setup = Setup::new().script("server.js").preload(&script).env("NODE_OPTIONS", "--a");
        let env = environment(&setup);
        let path = script.to_str().unwrap().replace('"', "\\\"");
        assert_eq!(env["NODE_OPTIONS"], format!("--require \"{path}\" --a"));
        assert_eq!(env["TROOP_NODE_OPTIONS"], "=--a");
        let env = environment(&setup.clone().env_remove("NODE_OPTIONS"));
        assert_eq!(env["NODE_OPTIONS"], format!("--require \"{path}\""));
        assert_eq!(env["TROOP_NODE_OPTIONS"], "");
        let others = [
            setup.clone().program("bun"),
            Setup::new().program("node").preload(&script),
            setup.clone().merge(Setup::new().preload("")),
        ];
        for other in others {
            let env = environment(&other);
            assert!(!env.contains_key("TROOP_NODE_OPTIONS"));
            assert!(!env.get("NODE_OPTIONS").is_some_and(|options| options.contains("quoted")));
        }
    }

    #[test]
    fn nodes_permission_model_is_recognised() {
        let setup = Setup::new().script("server.js");
        for (options, is_kept) in [
            (&["--permission"][..], true),
            (&["--allow-fs-read=*", "--permission"], true),
            (&["--permission", "--allow-net"], false),
            (&["--permission-audit"], false),
            (&[], false),
        ] {
            let by_arguments = setup.clone().exec_argv(options);
            assert_eq!(by_arguments.is_kept_from_listening(), is_kept, "{options:?}");
            let by_variable = setup.clone().env("NODE_OPTIONS", options.join(" "));
            assert_eq!(by_variable.is_kept_from_listening(), is_kept, "{options:?}");
        }
    }

    #[test]
    fn workers_start_without_it_where_node_could_not_read_it() {
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("script.js");
        let setup = Setup::new().script("server.js").preload(&script);
        assert!(setup.preload_obstacle().unwrap().contains("no such file"));
        assert!(!environment(&setup).contains_key("TROOP_NODE_OPTIONS"));
        std::fs::write(&script, "").unwrap();
        assert_eq!(setup.preload_obstacle(), None);
        let write = Some(vec![directory.path().to_owned()]);
        let sandbox = super::super::Sandbox { write, ..Default::default() };
        let exchangeable = setup.clone().sandbox(sandbox);
        assert!(exchangeable.preload_obstacle().unwrap().contains("write there"));
        assert!(!environment(&exchangeable).contains_key("TROOP_NODE_OPTIONS"));
        for (restricted, option) in [
            (setup.clone().exec_argv(["--permission"]), "--permission"),
            (setup.clone().exec_argv(["--env-file=.env"]), "--env-file"),
            (setup.clone().exec_argv(["--experimental-policy=p.json"]), "--experimental-policy"),
            (
                setup.clone().env("NODE_OPTIONS", "--x --experimental-permission"),
                "--experimental-permission",
            ),
        ] {
            let why = restricted.preload_obstacle().unwrap();
            assert!(why.contains(option), "{why}");
            assert!(!environment(&restricted).contains_key("TROOP_NODE_OPTIONS"));
        }
    }
}
