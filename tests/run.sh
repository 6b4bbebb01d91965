#!/usr/bin/env bash
# All tests: unit, property and end to end on real processes. Installs what is missing (Debian or Ubuntu).
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n== %s\n' "$*"; }

need=()
command -v cmake >/dev/null || need+=(cmake)
{ command -v cc && command -v g++ && command -v make; } >/dev/null || need+=(build-essential)
command -v pkg-config >/dev/null || need+=(pkg-config)
command -v curl >/dev/null || need+=(curl)
command -v redis-server >/dev/null || need+=(redis-server)
{ command -v initdb || ls /usr/lib/postgresql/*/bin/initdb; } >/dev/null 2>&1 || need+=(postgresql)
python3 -c 'import venv, ensurepip' 2>/dev/null || need+=(python3 python3-venv)
if [ ${#need[@]} -gt 0 ]; then
  say "installing ${need[*]}"
  sudo=""; [ "$(id -u)" = 0 ] || sudo=sudo
  $sudo apt-get update -qq
  DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "${need[@]}"
fi
command -v cargo >/dev/null || { echo "cargo is missing: install Rust from https://rustup.rs and run this again" >&2; exit 1; }

say "fetching the model"
deploy/fetch-model.sh

say "fetching the compiler for CUDA kernels (90 MB; no GPU is needed)"
deploy/fetch-nvrtc.sh

say "building the binaries"
cargo build --workspace --bins

if [ -n "${TOLLGATE_LARGE_MODELS:-}" ]; then
  say "fetching a model that calls tools (1.1 GB; tests/sdk/test_tools.py is skipped without it)"
  target/debug/local-backend pull qwen2.5-coder-1.5b-instruct
fi

say "Rust tests"
if cargo nextest --version >/dev/null 2>&1; then
  cargo nextest run --workspace
else
  cargo test --workspace
fi

say "a day of the batch tier, against a schedule that knows the future"
cargo run --quiet -p tests --bin batchday -- --check

say "end to end on real processes, and the official SDKs"
python3 -m venv .run/venv
.run/venv/bin/pip install --quiet --requirement tests/requirements.txt
.run/venv/bin/python -m pytest -q tests

say "quickstart, end to end"
deploy/quickstart.sh --smoke --profile dev
