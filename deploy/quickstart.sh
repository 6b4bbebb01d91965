#!/usr/bin/env bash
# From a clone to a conversation: builds, fetches a small model, starts engine and gateway, prints a key and a curl line.
# Usage: deploy/quickstart.sh [--smoke] [--profile dev|release]
#   --smoke    one streamed call end to end on free ports in a fresh folder; prints answer, charge and budget, and exits.
set -euo pipefail
cd "$(dirname "$0")/.."

smoke=no profile=release
while [ $# -gt 0 ]; do
  case "$1" in
    --smoke) smoke=yes ;;
    --profile) profile="${2:?--profile takes dev or release}"; shift ;;
    *) sed -n '2,4s/^# //p' "$0" >&2; exit 2 ;;
  esac
  shift
done

need=()
command -v cmake >/dev/null || need+=(cmake)
{ command -v cc && command -v make; } >/dev/null || need+=(build-essential)
command -v pkg-config >/dev/null || need+=(pkg-config)
command -v curl >/dev/null || need+=(curl)
python3 -c 'import venv, ensurepip' 2>/dev/null || need+=(python3 python3-venv)
if [ ${#need[@]} -gt 0 ]; then
  echo "installing ${need[*]}"
  sudo=""; [ "$(id -u)" = 0 ] || sudo=sudo
  $sudo apt-get update -qq
  DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "${need[@]}"
fi
command -v cargo >/dev/null || { echo "quickstart: cargo is missing; install Rust from https://rustup.rs and run this again" >&2; exit 1; }

cargo build --profile "$profile" -p gateway -p local-backend
bin="${CARGO_TARGET_DIR:-target}/$([ "$profile" = dev ] && echo debug || echo "$profile")"
model="$(deploy/fetch-model.sh)"

if [ "$smoke" = yes ]; then
  state="$(mktemp -d)" engine_listen=127.0.0.1:0 listen=127.0.0.1:0 admin=127.0.0.1:0
else
  state=.run/quickstart engine_listen=127.0.0.1:8089 listen=127.0.0.1:8080 admin=127.0.0.1:8081
  mkdir -p "$state"
fi
pids=()
stop() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
  if [ "$smoke" = yes ]; then rm -rf "$state"; fi
}
trap stop EXIT
trap 'exit 130' INT TERM

# Waits for a line of a log and prints what follows it.
line() {
  for _ in $(seq 200); do
    if grep -q "^$2" "$1" 2>/dev/null; then sed -n "s#^$2##p" "$1" | head -1; return; fi
    kill -0 "$3" 2>/dev/null || break
    sleep 0.1
  done
  echo "quickstart: it did not start:" >&2
  cat "$1" >&2
  exit 1
}

"$bin/local-backend" serve --model "$model" --listen "$engine_listen" >"$state/engine.log" 2>&1 &
pids+=($!)
engine="$(line "$state/engine.log" 'listening on ' $!)"
"$bin/tollgate" quickstart --dir "$state/gateway" --local-url "$engine" --listen "$listen" --admin "$admin" >"$state/gateway.log" 2>&1 &
pids+=($!)
url="$(line "$state/gateway.log" 'listening on ' $!)"
admin_url="$(line "$state/gateway.log" 'admin on ' $!)"
key="$(cat "$state/gateway/key")"
for _ in $(seq 300); do curl -sf "$engine/health" >/dev/null && break; sleep 0.1; done

body='{"model": "auto", "stream": true, "temperature": 0, "max_tokens": 60, "messages": [{"role": "user", "content": "Explain in two sentences why the sky is blue."}]}'

if [ "$smoke" = no ]; then
  cat <<TEXT

Tollgate runs.
  gateway  $url/v1      (base_url for the OpenAI SDK; for Anthropic's: $url)
  admin    $admin_url   (/admin/v1/openapi.json, /metrics; also: tollgate keys|teams|budgets|audit --url $admin_url)
  engine   $engine/v1
  key      $key

Try:
  curl -N $url/v1/chat/completions -H "Authorization: Bearer $key" \\
    -d '$body'

Ctrl-C stops both.
TEXT
  wait -n "${pids[@]}"
  echo "quickstart: a process ended; see $state/*.log" >&2
  exit 1
fi

curl -sfN -D "$state/head" "$url/v1/chat/completions" -H "Authorization: Bearer $key" -d "$body" >"$state/stream"
request="$(sed -n 's/^x-tollgate-request-id: //Ip' "$state/head" | tr -d '\r')"
curl -sf "$admin_url/admin/v1/requests/$request" >"$state/request"
curl -sf "$admin_url/admin/v1/budgets" >"$state/budgets"
python3 - "$state" <<'PY'
import json, pathlib, sys
state = pathlib.Path(sys.argv[1])
events = [line[6:] for line in (state / "stream").read_text().splitlines() if line.startswith("data: ")]
assert events and events[-1] == "[DONE]", "the stream did not come to its end"
answer = "".join(c["delta"].get("content") or "" for e in events[:-1] for c in json.loads(e)["choices"])
assert len(answer) > 20, f"no answer: {answer!r}"
request = json.loads((state / "request").read_text())
assert request["ending"] == "completed" and request["charge_dollars"] != "0.00", request
budget = json.loads((state / "budgets").read_text())["data"][0]
standing = budget["standing"]
print(f"answer:  {answer.strip()}")
print(f"charge:  ${request['charge_dollars']} for {request['attempts'][0]['input_tokens']} tokens in, {request['attempts'][0]['output_tokens']} out")
print(f"budget:  ${standing['remaining_dollars']} of ${standing['limit_dollars']} left for {budget['account']} this {budget['per']}")
PY
