"""local-backend's end after SIGTERM: what runs ends whole, what comes is refused with a time to come back, and the process
leaves by itself with 0."""
import contextlib
import http.client
import json
import socket
import time

import pytest

from live import BIN, MODEL, Process

SETTINGS = """
models: [{{path: "{model}", name: m, kv_tokens: 8192}}]
drain_s: {drain}
"""


@contextlib.contextmanager
def serve(folder, drain):
    (folder / "local.yaml").write_text(SETTINGS.format(model=MODEL, drain=drain))
    process = Process(str(BIN / "local-backend"), "serve", "--config", str(folder / "local.yaml"), "--listen", "127.0.0.1:0")
    try:
        host = process.address("listening on http://")
        until("healthy", lambda: status(host, "/health") == 200)
        yield process, host
    finally:
        process.child.kill()
        process.child.wait()


def until(what, is_so, patience=30):
    end = time.monotonic() + patience
    while not is_so():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def status(host, path):
    connection = http.client.HTTPConnection(host, timeout=30)
    connection.request("GET", path)
    return connection.getresponse().status


def stream(host, tokens):
    """A running stream: its answer, with the first piece read."""
    connection = http.client.HTTPConnection(host, timeout=60)
    body = {"model": "m", "messages": [{"role": "user", "content": "Tell me a story."}], "stream": True, "ignore_eos": True,
            "max_tokens": tokens, "temperature": 0, "stream_options": {"include_usage": True}}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == 200
    assert answer.readline().startswith(b"data: ")
    return answer


def half_a_request(host, path):
    """A connection that has begun to ask."""
    address, port = host.split(":")
    half = socket.create_connection((address, int(port)), timeout=30)
    half.sendall(f"GET {path} HTTP/1.1\r\nhost: local\r\n".encode())
    return half


def finish(half):
    """Asks the rest; what is answered until the server closes."""
    half.sendall(b"accept: */*\r\n\r\n")
    text = b"".join(iter(lambda: half.recv(65536), b"")).decode()
    head, body = text.split("\r\n\r\n", 1)
    lines = head.split("\r\n")
    return int(lines[0].split(" ")[1]), dict(line.lower().split(": ", 1) for line in lines[1:]), json.loads(body)


def test_a_stream_ends_whole_and_what_comes_is_told_when_to_come_back(tmp_path):
    with serve(tmp_path, drain=60) as (process, host):
        kept = http.client.HTTPConnection(host, timeout=30)
        kept.request("GET", "/v1/models")
        assert kept.getresponse().read()
        halves = [half_a_request(host, path) for path in ("/v1/models", "/health")]
        # Begun long enough for their heads to be waited for.
        time.sleep(0.3)
        running = stream(host, 600)
        process.child.terminate()
        # The listener is gone, and a connection without a question is closed.
        until("nobody is let in", lambda: refused(host))
        kept.sock.settimeout(30)
        assert kept.sock.recv(1) == b""
        code, headers, body = finish(halves[0])
        assert (code, headers["retry-after"], headers["connection"]) == (503, "5", "close")
        assert body["error"]["code"] == "shutting_down", body
        code, _, body = finish(halves[1])
        assert (code, body["status"]) == (503, "shutting down")
        assert process.child.poll() is None, "the stream still runs"
        lines = running.read().decode().split("\n\n")
        assert [line for line in lines if line][-1] == "data: [DONE]"
        pieces = [json.loads(line[len("data: "):]) for line in lines if line.startswith("data: {")]
        assert pieces[-1]["usage"]["completion_tokens"] == 600
        assert "length" in [choice["finish_reason"] for piece in pieces for choice in piece["choices"]]
        ended = time.monotonic()
        assert process.child.wait(30) == 0
        assert time.monotonic() - ended < 5, "nothing is left to wait for"


def refused(host):
    address, port = host.split(":")
    try:
        socket.create_connection((address, int(port)), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_what_takes_longer_than_the_drain_is_told_so(tmp_path):
    with serve(tmp_path, drain=1) as (process, host):
        running = stream(host, 7000)
        began = time.monotonic()
        process.child.terminate()
        last = [line for line in running.read().decode().split("\n\n") if line][-1]
        assert "the server is shutting down" in last, last
        assert process.child.wait(30) == 0
        assert time.monotonic() - began < 6


@pytest.mark.parametrize("signal", ["terminate", "interrupt"])
def test_with_nothing_to_do_it_leaves_at_once(tmp_path, signal):
    with serve(tmp_path, drain=60) as (process, host):
        silent = socket.create_connection(host.split(":"), timeout=30)
        time.sleep(0.1)
        began = time.monotonic()
        process.child.terminate() if signal == "terminate" else process.child.send_signal(2)
        assert process.child.wait(30) == 0
        assert time.monotonic() - began < 3
        assert silent.recv(1) == b""
