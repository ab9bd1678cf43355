//! The examples for containers: their numbers fit each other, and the app runs where it may write nowhere else.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").canonicalize().unwrap()
}

fn read(name: &str) -> String {
    std::fs::read_to_string(examples().join("container").join(name)).unwrap()
}

#[test]
fn the_manifest_the_image_and_the_apps_fit_each_other() {
    let apps: toml::Table = toml::from_str(&read("troop.toml")).unwrap();
    let manifest = read("kubernetes.yaml");
    let manifest: Value =
        serde_yaml_ng::from_str(manifest.split("\n---\n").next().unwrap()).unwrap();
    let template = &manifest["spec"]["template"];
    let (pod, container) = (&template["spec"], &template["spec"]["containers"][0]);
    let image = read("Dockerfile");

    // A pod has longer than its apps take to end.
    let grace = Duration::from_secs(pod["terminationGracePeriodSeconds"].as_u64().unwrap());
    let app = &template["metadata"]["labels"]["app"];
    for (name, app) in apps["app"].as_table().unwrap() {
        let seconds = |field: &str| u64::try_from(app[field].as_integer().unwrap()).unwrap();
        let takes = Duration::from_secs(seconds("drain_delay") + seconds("grace"));
        assert!(takes + Duration::from_secs(5) <= grace, "{name}: {takes:?} of {grace:?}");
    }

    // Probes and Prometheus ask where `troop admin` answers.
    let admin = apps["app"]["admin"]["args"][1].as_str().unwrap().rsplit(':').next().unwrap();
    assert_eq!(template["metadata"]["annotations"]["prometheus.io/port"], admin);
    let ports = container["ports"].as_array().unwrap();
    let port = |name: &str| ports.iter().find(|port| port["name"] == name).unwrap();
    assert_eq!(port("admin")["containerPort"].to_string(), admin);
    for (probe, path) in [("startup", "ready"), ("readiness", "ready"), ("liveness", "live")] {
        let get = &container[format!("{probe}Probe")]["httpGet"];
        assert_eq!(get["path"], format!("/{path}?app={}", app.as_str().unwrap()));
        assert_eq!(get["port"], "admin");
    }
    let exposed = image.lines().find_map(|line| line.strip_prefix("EXPOSE ")).unwrap();
    let declared: Vec<_> = ports.iter().map(|port| port["containerPort"].to_string()).collect();
    assert_eq!(exposed.split(' ').collect::<Vec<_>>(), declared);

    // It is nobody in particular, and writes to one place.
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert!(image.contains("\nUSER node\n") && pod["securityContext"]["runAsUser"] == 1000);
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
    let runtime = image.lines().find_map(|l| l.strip_prefix("ENV TROOP_RUNTIME_DIR=")).unwrap();
    let parent = Path::new(runtime).parent().unwrap().to_str().unwrap();
    assert_eq!(container["volumeMounts"][0]["mountPath"], parent);
}

/// As process 1 of an own namespace of mounts, processes and networks, with nothing to write to but `/run`, as
/// Kubernetes makes it, and as a user without any privilege.
const CONTAINER: &str = r#"
set -eu
mount --make-rprivate /
ip link set lo up
mount -t tmpfs -o mode=0777 tmpfs /run
mount -t tmpfs tmpfs "$PLACE"
mkdir "$PLACE/bin" "$PLACE/app"
cp "$TROOP" "$PLACE/bin/troop"
cp "$EXAMPLES/node/hello.js" "$EXAMPLES/container/troop.toml" "$PLACE/app"
ln -s "$(command -v node)" "$PLACE/bin/node"
chmod -R a+rX "$PLACE"
cd "$PLACE/app"
# Each mount is writable by itself.
for mount in "$PLACE" /tmp /dev/shm /; do mount -o remount,bind,ro "$mount" 2>/dev/null || :; done
PATH=$PLACE/bin:$PATH TROOP_RUNTIME_DIR=/run/troop setpriv --reuid 1000 --regid 1000 --clear-groups \
  --no-new-privs --bounding-set=-all --inh-caps=-all troop run >/run/output 2>&1 &
troop=$!
try=0
until curl --silent --fail "http://127.0.0.1:9900/ready?app=web"; do
  try=$((try + 1))
  if [ $try -gt 300 ] || ! kill -0 $troop; then cat /run/output; exit 1; fi
  sleep 0.1
done
curl --silent --fail http://127.0.0.1:8000
curl --silent --fail http://127.0.0.1:9900/live
curl --silent --fail http://127.0.0.1:9900/metrics | grep '^troop_workers_wanted'
kill -TERM $troop
# It serves on, and says that it is not ready, for balancers that learn of it late.
until [ "$(curl --silent --output /dev/null --write-out '%{http_code}' "http://127.0.0.1:9900/ready?app=web")" = 503 ]; do
  kill -0 $troop
  sleep 0.05
done
curl --silent --fail http://127.0.0.1:8000
wait $troop
grep -i 'warn\|cannot\|refus' /run/output && exit 1
ls /run
"#;

#[test]
fn the_app_of_the_examples_runs_without_privileges_where_only_the_runtime_directory_is_writable() {
    let has = |name: &str| Command::new(name).arg("--version").output().is_ok();
    let own_namespaces = ["--mount", "--net", "--pid", "--fork", "--mount-proc"];
    let tried = Command::new("unshare").args(own_namespaces).arg("true").output();
    let can = tried.is_ok_and(|tried| tried.status.success());
    if !can || !has("curl") || !has("setpriv") || !has("ip") {
        eprintln!("skipped: this needs root with namespaces, curl, iproute2 and setpriv");
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let mut command = Command::new("unshare");
    command.args(own_namespaces).args(["--kill-child", "sh", "-c", CONTAINER]);
    command.env("PLACE", place.path()).env("TROOP", env!("CARGO_BIN_EXE_troop"));
    let output = command.env("EXAMPLES", examples()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    assert_eq!(out.matches("hello from process").count(), 2, "{out}");
    assert!(
        out.contains("ready\n") && out.contains("troop_workers_wanted{app=\"web\"} 2"),
        "{out}"
    );
    assert!(out.ends_with("output\ntroop\n"), "it wrote elsewhere: {out}");
}
