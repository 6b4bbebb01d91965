"""A killed gateway: every call that had begun is accounted for exactly once."""
import time
import urllib.error
import urllib.request

import pytest

STREAMS = 200


def test_kill_with_streams_running(stack):
    stack.forget()
    before = stack.count()
    connections = [stack.send("fake-gap10-n300", True) for _ in range(STREAMS)]
    time.sleep(1)
    stack.gateway.child.kill()
    stack.gateway.child.wait()
    begun = len(stack.seen())
    assert begun > 0
    for connection in connections:
        connection.close()
    stack.start_gateway()
    assert stack.count() == before + begun
    query = """SELECT count(*), count(DISTINCT request), min(charge) FROM attempts
               WHERE outcome = 'crashed' AND usage_source = 'estimated'"""
    count, distinct, least = stack.rows(query)[0]
    assert count == distinct == begun and least > 0


def test_a_drain_finishes_what_runs_and_takes_nothing_new(stack):
    connection = stack.send("fake-gap10-n300", True)
    time.sleep(0.3)
    stack.gateway.child.terminate()
    time.sleep(0.3)
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(stack.url + "/health", timeout=2)
    seen = b""
    while more := connection.recv(65536):
        seen += more
    assert seen.rstrip().endswith(b"0") and b"[DONE]" in seen
    assert stack.gateway.child.wait(20) == 0
    stack.start_gateway()
    assert stack.rows("SELECT ending FROM requests ORDER BY id DESC LIMIT 1") == [("completed",)]
