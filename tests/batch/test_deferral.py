"""Ordinary requests that a policy makes jobs of, without a word from their callers."""
import json
import socket
import time
import urllib.error
import urllib.request
import uuid

from batch_stack import KEY
from waiting import until

SLOW = "fake-bnever-batch400-bpart50"


def post(gateway, workflow, model="fake-batch300", **more):
    """Status, headers and body of a chat completion."""
    headers = more.pop("headers", {})
    body = {"model": model, "max_tokens": 20, "messages": [{"role": "user", "content": uuid.uuid4().hex}]} | more
    request = urllib.request.Request(gateway.url + "/v1/chat/completions", data=json.dumps(body).encode())
    for name, value in ({"authorization": f"Bearer {KEY}", "x-tollgate-workflow": workflow} | headers).items():
        request.add_header(name, value)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.status, answer.headers, answer.read()


def show(gateway, job):
    request = urllib.request.Request(gateway.url + f"/v1/jobs/{job}", headers={"authorization": f"Bearer {KEY}"})
    return json.load(urllib.request.urlopen(request))


def test_nothing_is_deferred_that_no_policy_defers(gateway):
    status, headers, _ = post(gateway, "nightly")
    assert status == 200 and "x-tollgate-job" not in headers


def test_the_answer_comes_on_the_held_connection(gateway):
    status, headers, body = post(gateway, "patient")
    assert status == 200 and headers["x-tollgate-way"] == "batch"
    assert json.loads(body)["choices"][0]["message"]["content"].startswith("tok0")
    job = headers["x-tollgate-job"]
    charge, saved = gateway.rows(f"SELECT charge, saved FROM job_items WHERE job = '{job}'")[0]
    assert charge == saved > 0, "half price"
    billed = "SELECT tier, count(*), sum(a.charge) FROM attempts a JOIN requests r ON r.id = a.request WHERE workflow = 'patient' GROUP BY 1"
    assert until(lambda: gateway.rows(billed), 5) == [("batch", 1, charge)], "charged once"


def test_what_takes_longer_than_the_policy_holds_it_is_answered_202(gateway):
    began = time.time()
    status, headers, body = post(gateway, "hurried", SLOW)
    assert status == 202 and 0.9 < time.time() - began < 10
    job = json.loads(body)
    assert job["object"] == "job" and headers["location"] == f"/v1/jobs/{job['id']}" and headers["x-tollgate-job"] == job["id"]
    assert show(gateway, job["id"])["status"] in ("queued", "packed", "submitted")


def test_no_time_on_the_connection_is_202_at_once(gateway):
    status, headers, _ = post(gateway, "posted")
    assert status == 202
    done = until(lambda: (found := show(gateway, headers["x-tollgate-job"]))["status"] == "succeeded" and found)
    assert done["way"] == "batch" and done["result"]["status_code"] == 200


def test_streams_and_who_says_never_are_served_at_once(gateway):
    status, headers, body = post(gateway, "posted", stream=True)
    assert status == 200 and body.rstrip().endswith(b"[DONE]") and "x-tollgate-job" not in headers
    status, headers, _ = post(gateway, "posted", headers={"x-tollgate-defer": "never"})
    assert status == 200 and "x-tollgate-job" not in headers
    # What a caller asks for goes before what the policy says.
    status, headers, _ = post(gateway, "posted", headers={"x-tollgate-defer": "wait"})
    assert status == 200 and headers["x-tollgate-way"] == "batch"


def test_a_caller_that_hangs_up_no_longer_wants_it(gateway):
    request = json.dumps({"model": SLOW, "messages": [{"role": "user", "content": uuid.uuid4().hex}]}).encode()
    host, port = gateway.url.removeprefix("http://").split(":")
    head = (f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {KEY}\r\n"
            f"x-tollgate-workflow: patient\r\ncontent-length: {len(request)}\r\n\r\n")
    before = {row[0] for row in gateway.rows("SELECT id FROM jobs")}
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + request)
        job = until(lambda: {row[0] for row in gateway.rows("SELECT id FROM jobs WHERE state = 'running'")} - before).pop()
    until(lambda: gateway.rows(f"SELECT cancelled_us > 0 FROM jobs WHERE id = '{job}'") == [(1,)], 10)
