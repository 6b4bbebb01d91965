"""`/v1/jobs`, requests that agree to wait, and what operators see."""
import base64
import hashlib
import hmac
import http.server
import json
import sqlite3
import subprocess
import threading
import time
import urllib.error
import urllib.request
import uuid

import openai
import pytest
from batch_stack import KEY
from live import BIN
from waiting import until


def call(gateway, method, path, body=None, **headers):
    request = urllib.request.Request(gateway.url + path, method=method, data=json.dumps(body).encode() if body else None)
    request.add_header("authorization", f"Bearer {KEY}")
    for name, value in headers.items():
        request.add_header(name.replace("_", "-"), value)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def ask(model="fake-batch300", **more):
    body = {"model": model, "messages": [{"role": "user", "content": uuid.uuid4().hex}]}
    return {"endpoint": "/v1/chat/completions", "body": body, "completion_window": "1h"} | more


def test_made_polled_and_waited_for(gateway):
    status, job = call(gateway, "POST", "/v1/jobs", ask(metadata={"of": "test"}))
    assert status == 202 and job["object"] == "job" and job["status"] in ("queued", "packed", "submitted")
    began = time.time()
    status, done = call(gateway, "GET", f"/v1/jobs/{job['id']}", prefer="wait=30")
    assert time.time() - began < 30 and done["status"] == "succeeded" and done["metadata"] == {"of": "test"}
    assert done["result"]["body"]["choices"][0]["message"]["content"].startswith("tok0")
    assert done["way"] == "batch" and done["cost"].startswith("$0.0")


def test_an_idempotency_key_makes_one_job(gateway):
    body, name = ask(), uuid.uuid4().hex
    first = call(gateway, "POST", "/v1/jobs", body, idempotency_key=name)
    second = call(gateway, "POST", "/v1/jobs", body, idempotency_key=name)
    assert (first[0], second[0]) == (202, 200) and first[1]["id"] == second[1]["id"]


def test_events(gateway):
    _, job = call(gateway, "POST", "/v1/jobs", ask())
    request = urllib.request.Request(gateway.url + f"/v1/jobs/{job['id']}")
    request.add_header("authorization", f"Bearer {KEY}")
    request.add_header("accept", "text/event-stream")
    text = urllib.request.urlopen(request, timeout=60).read().decode()
    last = [line for line in text.splitlines() if line.startswith("data: ")][-1]
    assert "event: result" in text and json.loads(last[6:])["status"] == "succeeded"


def test_a_webhook_is_signed_and_tried_again(gateway):
    seen = []

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            seen.append((dict(self.headers), body))
            self.send_response(500 if len(seen) == 1 else 200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hook = {"url": f"http://127.0.0.1:{server.server_port}/told", "secret": "a secret of some length"}
    _, job = call(gateway, "POST", "/v1/jobs", ask(webhook=hook))
    until(lambda: len(seen) == 2, 60)
    headers, body = seen[1]
    headers = {name.lower(): value for name, value in headers.items()}
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    digest = base64.b64encode(hmac.new(hook["secret"].encode(), signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{digest}" and seen[0][0]["webhook-id"] == headers["webhook-id"]
    told = json.loads(body)["data"]
    assert told["id"] == job["id"] and told["status"] == "succeeded" and told["result"]["status_code"] == 200
    server.shutdown()
    status, refused = call(gateway, "POST", "/v1/jobs", ask(webhook=hook | {"url": "http://example.com/"}))
    assert status == 400 and "not allowed" in refused["error"]["message"]


@pytest.mark.parametrize("body, problem", [
    (ask(endpoint="/v1/moderations"), "cannot be a job"),
    (ask(completion_window="9d"), "completion_window"),
    (ask("nobody-s-model"), "nobody-s-model"),
    ({"nothing": 1}, "that is no job"),
])
def test_mistakes(gateway, body, problem):
    status, told = call(gateway, "POST", "/v1/jobs", body)
    assert status in (400, 404) and problem in told["error"]["message"]


def test_a_request_that_may_wait_is_answered_by_a_batch(gateway):
    client = openai.OpenAI(base_url=gateway.url + "/v1", api_key=KEY, max_retries=0)
    body = ask()["body"]
    headers = {"x-tollgate-defer": "wait", "x-tollgate-workflow": "nightly"}
    answer = client.chat.completions.with_raw_response.create(**body, extra_headers=headers)
    assert answer.headers["x-tollgate-way"] == "batch"
    assert answer.parse().choices[0].message.content.startswith("tok0")
    assert any(item["text"] == body["messages"][0]["content"] for found in gateway.batches() for item in found["items"])
    # What may not wait is served at once, whatever its caller agrees to.
    answer = client.chat.completions.with_raw_response.create(**ask()["body"], extra_headers={"x-tollgate-defer": "wait"})
    assert "x-tollgate-job" not in answer.headers
    status, job = call(gateway, "POST", "/v1/chat/completions", ask()["body"], x_tollgate_defer="accept", x_tollgate_workflow="nightly")
    assert status == 202 and job["object"] == "job"


def test_a_local_model_is_a_target_of_its_own(gateway):
    _, job = call(gateway, "POST", "/v1/jobs", ask("smollm2-135m-instruct"))
    _, done = call(gateway, "GET", f"/v1/jobs/{job['id']}", prefer="wait=30")
    assert (done["status"], done["way"]) == ("succeeded", "local")


def cli_of(gateway):
    def cli(*arguments):
        run = subprocess.run([BIN / "tollgate", *arguments, "--url", gateway.admin], capture_output=True, text=True)
        return run.stdout + run.stderr

    return cli


def test_the_audit_tells_how_long_answers_lay_before_they_were_read(own_gateway):
    gateway = own_gateway()
    _, job = call(gateway, "POST", "/v1/jobs", ask())
    read = f"SELECT read_us > 0, ended_us > 0 FROM jobs WHERE id = '{job['id']}'"
    until(lambda: gateway.rows(read) == [(0, 1)], 30)
    assert "first_read" not in cli_of(gateway)("audit", "batch")
    # As if it had been answered an hour ago.
    database = sqlite3.connect(gateway.folder / "tollgate.db", timeout=30)
    with database:
        database.execute("UPDATE job_items SET ended_us = ended_us - 3600000000")
    database.close()
    assert call(gateway, "GET", f"/v1/jobs/{job['id']}")[1]["status"] == "succeeded"
    assert until(lambda: gateway.rows(read) == [(1, 1)], 5)
    first = gateway.rows("SELECT read_us FROM jobs")
    call(gateway, "GET", f"/v1/jobs/{job['id']}")
    assert gateway.rows("SELECT read_us FROM jobs") == first, "only the first time counts"
    row = json.load(urllib.request.urlopen(gateway.admin + "/admin/v1/audit/batch"))["data"][0]
    assert (row["evidence"], row["account"], row["requests"]) == ("first_read", "acme/one", 1)
    assert 3_590_000 < row["first_read_ms"] < 3_700_000
    assert "first_read" in cli_of(gateway)("audit", "batch", "--since", "30d")


def test_the_audit_tells_what_could_have_waited(own_gateway):
    """Declared by its tier, or shown by its hours; with what it would have cost less and how long it would have taken."""
    gateway = own_gateway()
    body = ask()["body"] | {"max_tokens": 10}
    for _ in range(3):
        assert call(gateway, "POST", "/v1/chat/completions", body, x_tollgate_workflow="nightly")[0] == 200
    _, job = call(gateway, "POST", "/v1/jobs", ask())
    assert call(gateway, "GET", f"/v1/jobs/{job['id']}", prefer="wait=30")[1]["way"] == "batch"
    until(lambda: gateway.rows("SELECT count(*) FROM requests WHERE origin = 'live'") == [(3,)])
    rows = json.load(urllib.request.urlopen(gateway.admin + "/admin/v1/audit/batch"))
    charged = gateway.rows("SELECT sum(charge) FROM requests WHERE origin = 'live'")[0][0]
    row = next(row for row in rows["data"] if row["evidence"] == "declared")
    assert row["requests"] == 3 and float(row["charge_dollars"]) == charged / 1e9
    assert float(row["left_dollars"]) == pytest.approx(charged / 2e9, rel=1e-6), "a batch is half the price"
    assert row["batch_ms"] >= 300 > row["latency_ms"]


def test_operators_see_and_cancel(gateway):
    cli = cli_of(gateway)
    _, job = call(gateway, "POST", "/v1/jobs", ask("fake-bnever-batch400-bpart50"))
    assert job["id"] in cli("jobs", "list")
    assert "is running" in cli("jobs", "show", job["id"])
    assert "cancelling" in cli("jobs", "cancel", job["id"]) or "ended" in cli("jobs", "show", job["id"])
    until(lambda: "is ended" in cli("jobs", "show", job["id"]), 30)
    assert "no job" in cli("jobs", "show", "job_nobody")
    assert "LEFT ON THE TABLE" in cli("audit", "batch", "--since", "30d")
    metrics = urllib.request.urlopen(gateway.admin + "/metrics").read().decode()
    until(lambda: "tollgate_job_saved_dollars" in urllib.request.urlopen(gateway.admin + "/metrics").read().decode(), 30)
    assert "tollgate" in metrics
