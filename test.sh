#!/usr/bin/env bash
# Runs all tests, and installs what they need: cargo-nextest (every test in a process of its own, which tests of processes, signals and
# descriptors need), the npm packages of the examples and of the tests' servers, and nginx, Prometheus and Chromium where Debian's packages are; builds the web page. Needs Rust, Node and npm. Arguments are passed on to cargo nextest, and only what
# it runs is run then.
set -euo pipefail
cd "$(dirname "$0")"
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
command -v node npm >/dev/null || { echo "test.sh needs node and npm on the PATH" >&2; exit 1; }
cargo nextest --version >/dev/null 2>&1 || cargo install cargo-nextest --locked --version 0.9.143
[ -d examples/node/node_modules/prom-client ] || (cd examples/node && npm ci --no-audit --no-fund)
# Libraries that have a part in the primary, and what the npm package is tried with.
[ -d npm/test/packages/node_modules/rate-limiter-flexible ] || (cd npm/test/packages && npm ci --no-audit --no-fund)
web=crates/troop-testkit/node/web
[ -d $web/.next ] || (cd $web && npm ci --no-audit --no-fund && npm run build)
# Debian's nginx, unpacked only: installed, it would listen on port 80. The tests that need it are skipped without it.
if ! PATH=$PATH:/usr/sbin command -v nginx >/dev/null && [ ! -x target/nginx/usr/sbin/nginx ] && command -v apt-get >/dev/null; then
  mkdir -p target/nginx
  (cd target/nginx && { apt-get download nginx || { apt-get update && apt-get download nginx; }; } && dpkg -x nginx_*.deb .) ||
    echo "test.sh cannot get nginx" >&2
fi
# What reads metrics: Debian's Prometheus with promtool, unpacked only, and the parser of OpenMetrics in Python. The tests that need them are skipped
# without them.
if [ ! -x target/prometheus/usr/bin/promtool ] && command -v apt-get >/dev/null; then
  mkdir -p target/prometheus
  (cd target/prometheus && { apt-get download prometheus || { apt-get update && apt-get download prometheus; }; } &&
    dpkg --fsys-tarfile prometheus_*.deb | tar -x ./usr/bin/prometheus ./usr/bin/promtool && rm prometheus_*.deb) ||
    echo "test.sh cannot get Prometheus" >&2
fi
if [ ! -d target/python/prometheus_client ]; then
  python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target target/python prometheus-client==0.26.0 ||
    echo "test.sh cannot get Python's prometheus_client" >&2
fi
# The web page, which cargo embeds.
page=crates/troop-cli/page
[ -d $page/node_modules/esbuild ] || (cd $page && npm ci --no-audit --no-fund)
(cd $page && npm run --silent check && npm run --silent build)
# A browser for it: Debian's Chromium without windows, with what it needs and this machine lacks, unpacked only. The tests that need it are skipped
# without it.
if [ ! -x target/chromium/usr/lib/chromium/chromium-headless-shell ] && command -v apt-get >/dev/null; then
  mkdir -p target/chromium
  lacking() {
    apt-get install --yes --no-install-recommends --print-uris chromium-headless-shell fonts-dejavu-core |
      sed -n "s/^'[^']*' \([^_]*\)_.*/\1/p"
  }
  (cd target/chromium && { lacking | xargs apt-get download || { apt-get update && lacking | xargs apt-get download; }; } &&
    for package in *.deb; do dpkg -x "$package" . && rm "$package"; done) ||
    echo "test.sh cannot get Chromium" >&2
fi
# A name that is a file of tests, or FILE::MODULE, means those too: nextest itself looks at the names of functions and modules alone.
if [ $# -eq 1 ] && [[ $1 =~ ^[a-z0-9_]+(::[a-z0-9_]+)?$ ]]; then
  file=${1%%::*}
  if compgen -G "crates/*/tests/$file.rs" >/dev/null || compgen -G "crates/*/tests/$file/main.rs" >/dev/null; then
    case $1 in
      *::*) set -- -E "test($1) | (binary($file) & test(/^${1#*::}::/))" ;;
      *) set -- -E "test($1) | binary($file)" ;;
    esac
  fi
fi
cargo nextest run --workspace --all-features "$@"
# What concerns Node, on every version that is maintained; the npm package inside real Node processes.
if [ $# -eq 0 ]; then
  node npm/build.js --debug
  nodes=$PWD/npm/test/nodes/node_modules
  if [ ! -d "$nodes/node26" ]; then
    kind=node-linux-$(node -p process.arch)
    mkdir -p npm/test/nodes
    (cd npm/test/nodes && npm install --prefix . --no-save --no-package-lock --no-audit --no-fund \
      "node22@npm:$kind@22" "node24@npm:$kind@24" "node26@npm:$kind@26")
  fi
  for node in "$(dirname "$(command -v node)")" "$nodes"/node{22,24,26}/bin; do
    echo "== on $("$node/node" --version)"
    # Most of them wait for processes rather than compute.
    "$node/node" --test --test-concurrency 3 npm/test/*.test.js
    [ "$node" = "$(dirname "$(command -v node)")" ] ||
      PATH=$node:$PATH cargo nextest run --workspace --all-features \
        -E '(package(troop-testkit) | package(troop-cli)) & (binary(/^node_/) | test(node) | test(reload) | binary(pm2))'
  done
fi
# Documentation examples are tests too, which nextest does not run.
[ $# -gt 0 ] || cargo test --workspace --all-features --doc
