#!/usr/bin/env bash
# Fetches NVIDIA's runtime compiler (NVRTC 13.0, a download of 90 MB, 114 MB unpacked, no header and no toolkit) from its
# Python package into DIR and prints the folder, for `local-backend --cuda-root` and for the tests that compile every kernel.
# Usage: deploy/fetch-nvrtc.sh [DIR], .run/cuda by default. A second run finds the files and does nothing.
# NVIDIA's licence (in the package) holds for what is fetched.
set -euo pipefail
cd "$(dirname "$0")/.."

# 13.0 makes PTX that a driver of the 580 series takes; a newer compiler's is refused there.
package="nvidia-cuda-nvrtc==13.0.88"
dir="${1:-.run/cuda}"
stamp="$dir/version"

case "$(uname -s)-$(uname -m)" in
  Linux-x86_64 | Linux-aarch64) ;;
  *) echo "fetch-nvrtc: NVIDIA makes no such package for $(uname -s) on $(uname -m); nothing fetched" >&2; exit 0 ;;
esac
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$package" ]; then
  echo "$dir"
  exit 0
fi
python3 -c 'import venv, ensurepip' 2>/dev/null || {
  echo "fetch-nvrtc: python3 with venv is needed: apt-get install python3-venv" >&2
  exit 1
}
mkdir -p "$dir"
work="$(mktemp -d "$dir/fetch.XXXXXX")"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$work" "$package" >&2
"$work/venv/bin/python" - "$work" <<'PY'
import pathlib, sys, zipfile
work = pathlib.Path(sys.argv[1])
wheel = zipfile.ZipFile(next(work.glob("*.whl")))
(work / "lib").mkdir()
wanted = ("libnvrtc.so.13", "libnvrtc-builtins.so.13.0", "License.txt")
found = [name for name in wheel.namelist() if pathlib.PurePosixPath(name).name in wanted]
if len(found) != len(wanted):
    sys.exit(f"fetch-nvrtc: expected {', '.join(wanted)} in the package, found {found}")
for name in found:
    (work / "lib" / pathlib.PurePosixPath(name).name).write_bytes(wheel.read(name))
PY
rm -rf "$dir/lib"
mv "$work/lib" "$dir/lib"
echo "$package" > "$stamp"
echo "$dir"
