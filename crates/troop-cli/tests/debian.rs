//! The Debian package, unpacked in a root of its own. Needs cargo-deb and dpkg.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn ran(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    output
}

fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

#[test]
fn the_debian_package_has_the_program_and_what_belongs_to_it() {
    if !is_there("cargo-deb") || !is_there("dpkg-deb") {
        eprintln!("skipped: cargo-deb or dpkg-deb is not installed");
        return;
    }
    let program = Path::new(env!("CARGO_BIN_EXE_troop"));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("troop.deb");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("debian/package");
    // The program of the tests in place of a release.
    let target = directory.path().join("target");
    std::fs::create_dir_all(target.join("release")).unwrap();
    std::fs::copy(program, target.join("release/troop")).unwrap();
    ran(Command::new(script)
        .args(["--no-strip", "--fast", "--output"])
        .arg(&file)
        .env("BUILD", "no")
        .env("CARGO_TARGET_DIR", target));
    let root = directory.path().join("root");
    ran(Command::new("dpkg-deb").arg("-x").arg(&file).arg(&root));
    for path in [
        "usr/share/man/man1/troop.1.gz",
        "usr/share/man/man1/troop-run.1.gz",
        "usr/share/bash-completion/completions/troop",
        "usr/share/zsh/vendor-completions/_troop",
        "usr/share/fish/vendor_completions.d/troop.fish",
        "usr/share/doc/troop/copyright",
        "usr/share/doc/troop/docs/tool.md",
    ] {
        assert!(root.join(path).metadata().is_ok_and(|file| file.len() > 0), "{path}");
    }
    let control = ran(Command::new("dpkg-deb").arg("-f").arg(&file));
    let control = String::from_utf8(control.stdout).unwrap();
    assert!(control.contains("Package: troop\n") && control.contains("libc6"), "{control}");
    let version = ran(Command::new(root.join("usr/bin/troop")).arg("--version"));
    let version = String::from_utf8(version.stdout).unwrap();
    assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
    starts_what_the_unit_names(&root);
}

/// Carries out the unit's command for an app of a file.
fn starts_what_the_unit_names(root: &Path) {
    let unit = std::fs::read_to_string(root.join("usr/lib/systemd/system/troop@.service")).unwrap();
    let command = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    let etc = root.join("etc/troop");
    std::fs::create_dir_all(&etc).unwrap();
    std::fs::write(etc.join("web.toml"), "[app.web]\nprogram = \"/bin/true\"\nalone = true\n")
        .unwrap();
    // As in a root directory, which takes rights that a test may not have.
    let words = command.split(' ').map(|word| {
        let word = word.replace("%i", "web");
        word.strip_prefix('/').map_or_else(|| PathBuf::from(&word), |path| root.join(path))
    });
    let words: Vec<_> = words.collect();
    let check = ran(Command::new(&words[0]).arg("check").arg(&words[3]));
    assert!(
        words[1..3] == [Path::new("run"), Path::new("--config")]
            && words[4..] == [Path::new("web")]
    );
    assert!(String::from_utf8_lossy(&check.stdout).contains("web"), "{check:?}");
}
