"""How fast our own engine starts over a cached beginning, and how fast it is idle after a hang-up. The bounds are loose, for
shared machines and unoptimised builds; `TOLLGATE_PROFILE=release TOLLGATE_ROUNDS=20 pytest -s` on a quiet one prints figures."""
import http.client
import json
import os
import statistics
import time
import urllib.request

import pytest

from live import BIN, MODEL, Process

ROUNDS = int(os.environ.get("TOLLGATE_ROUNDS", 5))


@pytest.fixture(scope="module")
def address():
    process = Process(str(BIN / "local-backend"), "serve", "--model", str(MODEL), "--listen", "127.0.0.1:0")
    url = process.address("listening on ")
    for _ in range(600):
        try:
            urllib.request.urlopen(url + "/health")
            break
        except urllib.error.HTTPError:
            time.sleep(0.05)
    yield url.removeprefix("http://")
    process.stop()


def send(address, content, max_tokens=8, **more):
    connection = http.client.HTTPConnection(address, timeout=120)
    body = {"messages": [{"role": "user", "content": content}], "stream": True, "max_tokens": max_tokens, "temperature": 0, **more}
    connection.request("POST", "/v1/chat/completions", json.dumps(body))
    return connection


def first_token(address, content):
    """Milliseconds to the first chunk that has text."""
    started = time.perf_counter()
    connection = send(address, content)
    answer = connection.getresponse()
    while not (line := answer.readline()).startswith(b"data: ") or b'"content":"' not in line or b'"content":""' in line:
        assert line
    took = (time.perf_counter() - started) * 1e3
    answer.read()
    connection.close()
    return took


def metric(address, name):
    text = urllib.request.urlopen(f"http://{address}/metrics").read().decode()
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(f"local_{name}{{"))


def idle_after(address, connection, others=0):
    """Milliseconds from the hang-up until no more than `others` requests are there."""
    gone = time.perf_counter()
    connection.sock.close()
    connection.close()
    while metric(address, "num_requests_running") + metric(address, "num_requests_waiting") > others:
        assert time.perf_counter() - gone < 10
    return (time.perf_counter() - gone) * 1e3


def running(address, least=1):
    end = time.perf_counter() + 20
    while metric(address, "num_requests_running") < least:
        assert time.perf_counter() < end


def test_a_cached_beginning_makes_the_first_token_fast(address):
    def prompt(end):
        return "The quick brown fox jumps over the lazy dog. " * 100 + f"Now say hello to {end}."
    cold = first_token(address, prompt("Anna"))
    warm = [first_token(address, prompt(f"number {at}")) for at in range(7)]
    print(f"\nfirst token over a prefix of about 1,000 tokens: cold {cold:.0f} ms, then median {statistics.median(warm):.1f}, best {min(warm):.1f}")
    assert statistics.median(warm) < cold / 4


@pytest.mark.parametrize("phase", ["prefill", "decode", "queued"])
def test_a_hang_up_leaves_the_engine_idle(address, phase):
    times = []
    for round in range(ROUNDS):
        if phase == "prefill":
            connection = send(address, f"{round} " + "one two three four five six seven " * 480)
            running(address)
            time.sleep(0.15)
            times.append(idle_after(address, connection))
        elif phase == "decode":
            connection = send(address, f"Tell me a story, number {round}.", max_tokens=4000, ignore_eos=True)
            produced = metric(address, "generation_tokens_total")
            while metric(address, "generation_tokens_total") < produced + 5:
                pass
            times.append(idle_after(address, connection))
        else:
            crowd = [send(address, f"{round} {at}", max_tokens=4000, ignore_eos=True) for at in range(64)]
            running(address, 64)
            for at in range(20):
                queued = send(address, f"{round} waits {at}")
                while not metric(address, "num_requests_waiting"):
                    pass
                times.append(idle_after(address, queued, others=64))
            [idle_after(address, connection, others=63 - at) for at, connection in enumerate(crowd)]
            break
    print(f"\n{phase}: idle after median {statistics.median(times):.1f} ms, longest {max(times):.1f}, {len(times)} samples")
    assert max(times) < 1000
