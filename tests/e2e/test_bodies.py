"""Large bodies pass whole, larger ones are refused so that the caller hears it, and many streams stay in order."""
import hashlib
import json
import subprocess
import threading

import pytest

from live import BIN

VERSIONS = ["--http1.1", "--http2-prior-knowledge"]


def post(stack, key, version, path, *more):
    command = ["curl", "-sS", version, "-m", "60", "-w", "\n%{http_code}", "-H", f"x-api-key: {key}", *more,
               stack.url + "/v1/chat/completions", "--data-binary", f"@{path}"]
    body, status = subprocess.run(command, check=True, capture_output=True, text=True).stdout.rsplit("\n", 1)
    return int(status), json.loads(body)


@pytest.mark.parametrize("version", VERSIONS)
def test_twenty_megabytes_arrive_whole(stack, key, version, tmp_path):
    body = json.dumps({"model": "fake-echo", "stream": True, "stream_options": {"include_usage": True},
                       "messages": [{"role": "user", "content": "x" * 20_000_000}]})
    (tmp_path / "body").write_text(body)
    command = ["curl", "-sSN", version, "-m", "60", "-H", f"x-api-key: {key}", stack.url + "/v1/chat/completions",
               "--data-binary", f"@{tmp_path / 'body'}"]
    stack.forget()
    subprocess.run(command, check=True, capture_output=True)
    # The price of an input that large limits the answer, which is the one field that differs.
    call = stack.seen()[-1]
    assert call["body_bytes"] >= len(body) and call["status"] == 200
    if call["body_bytes"] == len(body):
        assert call["body_sha256"] == hashlib.sha256(body.encode()).hexdigest()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("framing", [[], ["-H", "transfer-encoding: chunked"]])
def test_thirty_three_megabytes_are_refused_cleanly(stack, key, version, framing, tmp_path):
    body = {"model": "fake-echo", "messages": [{"role": "user", "content": "x" * (33 << 20)}]}
    (tmp_path / "body").write_text(json.dumps(body))
    status, answer = post(stack, key, version, tmp_path / "body", *framing)
    assert (status, answer["error"]["code"]) == (413, "request_too_large")


def test_streams_side_by_side_stay_whole_and_in_order(stack):
    problems = []

    def one():
        connection = stack.send("fake-gap10-n300", True)
        seen = b""
        while b"[DONE]" not in seen:
            more = connection.recv(65536)
            if not more:
                problems.append("a stream ended early")
                return
            seen += more
        connection.close()
        text = "".join(json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
                       for line in unchunk(seen).splitlines() if line.startswith("data: {"))
        if text.split() != [f"tok{n}" for n in range(300)]:
            problems.append(text[:100])

    threads = [threading.Thread(target=one) for _ in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems, problems[:3]


def unchunk(raw):
    """The body of a chunked HTTP/1.1 answer."""
    body, out = raw.split(b"\r\n\r\n", 1)[1], b""
    while body:
        size, rest = body.split(b"\r\n", 1)
        length = int(size, 16)
        if not length:
            break
        out += rest[:length]
        body = rest[length + 2:]
    return out.decode()


def test_an_answer_cut_by_the_provider_is_not_complete(stack):
    connection = stack.send("fake-n40-cut7", True)
    seen = b""
    while more := connection.recv(65536):
        seen += more
    assert b"[DONE]" not in seen and b'"error"' in seen
    assert not seen.endswith(b"0\r\n\r\n"), "the chunked body was ended as if it were whole"


def test_a_thousand_streams_at_once_stay_whole_and_in_order():
    command = [BIN / "load", "--binaries", BIN, "--only", "streams", "--rounds", "1", "--seconds", "0.3"]
    out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=180).stdout
    whole = [line for line in out.splitlines() if "whole and in order 1000" in line]
    assert [line.split()[0] for line in whole] == ["direct", "floor", "gateway"], out
