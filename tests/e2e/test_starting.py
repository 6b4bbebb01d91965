"""How the gateway starts: while its store is away, without anyone who reads what it prints, with TLS for its operators."""
import hashlib
import json
import os
import signal
import ssl
import subprocess
import time
import urllib.error
import urllib.request

import anthropic
import openai
import pytest
import trustme

from live import BIN, Process
from postgres import Postgres, free_port

KEY = "tg_a_key_for_the_tests_of_starting_0123456789"
MASTER = "an-admin-key-of-the-starts-0123456789"
MESSAGES = [{"role": "user", "content": "hello"}]

POLICY = """
version: 1
deployments: [{id: own, provider: oa, model: fake-n4, class: local}]
routes: [{name: all}]
"""

CONFIG = """
listen: [{{address: "127.0.0.1:{port}"}}]
admin: {{address: "127.0.0.1:{admin}", key: "file:admin-key"{tls}}}
store: {{{store}}}
providers:
  oa: {{dialect: openai_chat, base_url: "{fake}/v1", credential: "file:credential"}}
accounts:
  acme: {{budgets: [{{limit_dollars: "1", per: month}}], keys: {{one: {{hash: "sha256:{hash}"}}}}}}
unpriced_ceiling_dollars: "0.01"
"""


@pytest.fixture(scope="module")
def fake():
    process = Process(str(BIN / "fake-provider"))
    yield process.address("listening on ")
    process.stop()


@pytest.fixture(scope="module")
def server():
    postgres = Postgres()
    yield postgres
    postgres.remove()


def prepared(folder, fake, port=0, admin=0, tls="", store=""):
    (folder / "credential").write_text("sk-fake-credential")
    (folder / "admin-key").write_text(MASTER)
    (folder / "policy.yaml").write_text(POLICY)
    settings = dict(port=port, admin=admin, tls=tls, store=store, hash=hashlib.sha256(KEY.encode()).hexdigest())
    (folder / "tollgate.yaml").write_text(CONFIG.format(fake=fake, **settings))
    return [str(BIN / "tollgate"), "serve", "--config", str(folder / "tollgate.yaml")]


def on(server, folder, database="tollgate"):
    (folder / "database-url").write_text(server.url(database))
    return 'postgres: {url: "file:database-url"}'


def got(url, key=MASTER, context=None):
    request = urllib.request.Request(url, headers={"authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request, timeout=10, context=context) as answer:
            return answer.status, json.load(answer), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, json.load(error), error.headers


def until(what, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not become true in time"
        time.sleep(0.05)


def test_a_start_without_its_store_waits_and_serves_once_it_is_there(server, fake, tmp_path):
    gateway = Process(*prepared(tmp_path, fake, store=on(server, tmp_path)))
    try:
        url, admin = gateway.address("listening on "), gateway.address("admin on ")
        chat = openai.OpenAI(base_url=url + "/v1", api_key=KEY, max_retries=0)
        with pytest.raises(openai.InternalServerError) as refused:
            chat.chat.completions.create(model="fake-n4", messages=MESSAGES)
        assert refused.value.status_code == 503 and "waits for its store" in str(refused.value)
        assert refused.value.response.headers["retry-after"] == "5"
        with pytest.raises(anthropic.APIStatusError) as refused:
            anthropic.Anthropic(base_url=url, api_key=KEY, max_retries=0).messages.create(model="fake-n4", max_tokens=5, messages=MESSAGES)
        assert refused.value.status_code == 503 and refused.value.body["type"] == "error"
        status, told, headers = got(url + "/health")
        assert (status, told, headers["retry-after"]) == (503, {"status": "starting"}, "5")
        status, told, _ = got(admin + "/health/readiness")
        assert status == 503 and told["status"] == "not ready" and str(server.port) in told["ledger"]
        # Nobody is to kill it for this.
        assert got(admin + "/health")[:2] == (200, {"status": "starting"})
        assert got(admin + "/admin/v1/keys")[1]["code"] == "store_unavailable"

        server.start()
        until(lambda: got(admin + "/health/readiness")[0] == 200)
        assert got(url + "/health")[:2] == (200, {"status": "ok"})
        chat.chat.completions.create(model="fake-n4", messages=MESSAGES)
        until(lambda: server.sql("SELECT count(*), max(charge) FROM requests WHERE status = 200") == "1|10000000")
    finally:
        gateway.stop()
    assert gateway.child.returncode == 0


def test_a_wait_ends_when_it_is_told_to(server, fake, tmp_path):
    server.stop()
    gateway = Process(*prepared(tmp_path, fake, store=on(server, tmp_path)))
    gateway.address("admin on ")
    gateway.stop()
    assert gateway.child.returncode == 0


def test_a_store_that_refuses_for_good_ends_the_start(server, fake, tmp_path):
    if server.server is None:
        server.start()
    done = subprocess.run(prepared(tmp_path, fake, store=on(server, tmp_path, "nowhere")), capture_output=True, text=True, timeout=30)
    assert done.returncode == 1 and 'database "nowhere" does not exist' in done.stderr and "check `store`" in done.stderr


def test_nobody_need_read_what_it_prints(fake, tmp_path):
    port = free_port()
    reads, writes = os.pipe()
    os.close(reads)
    gateway = subprocess.Popen(prepared(tmp_path, fake, port=port), stdout=writes, stderr=subprocess.PIPE, text=True)
    os.close(writes)
    try:
        def answers():
            assert gateway.poll() is None, gateway.stderr.read()
            try:
                return got(f"http://127.0.0.1:{port}/health")[0] == 200
            except urllib.error.URLError:
                return False
        until(answers)
    finally:
        gateway.terminate()
        _, log = gateway.communicate(timeout=30)
    assert gateway.returncode == 0 and f"listening on http://127.0.0.1:{port}" in log, "the log has the addresses instead"


def test_operators_are_served_over_tls(fake, tmp_path):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")

    def issue():
        issued = authority.issue_cert("localhost", "127.0.0.1")
        issued.private_key_pem.write_to_path(tmp_path / "key.pem")
        issued.cert_chain_pems[0].write_to_path(tmp_path / "certificate.pem")

    issue()
    tls = ", tls: {certificate_file: certificate.pem, key_file: key.pem}"
    command = prepared(tmp_path, fake, admin=free_port(), tls=tls)
    gateway = Process(*command)
    try:
        url = gateway.address("admin on ")
        assert url.startswith("https://127.0.0.1:")
        context = ssl.create_default_context(cafile=tmp_path / "authority.pem")
        assert got(url + "/health", context=context)[:2] == (200, {"status": "ok"})
        assert got(url + "/admin/v1/keys", context=context)[0] == 200
        with pytest.raises((urllib.error.URLError, ConnectionError)):
            got(url.replace("https", "http") + "/health")
        # The command line finds address and key in the configuration.
        cli = [str(BIN / "tollgate"), "teams", "list", "--config", str(tmp_path / "tollgate.yaml"), "--json"]
        untrusted = subprocess.run(cli, capture_output=True, text=True)
        assert untrusted.returncode == 1 and "certificate" in untrusted.stderr.lower(), untrusted.stderr
        listed = subprocess.run([*cli, "--ca-file", str(tmp_path / "authority.pem")], capture_output=True, text=True)
        assert listed.returncode == 0 and json.loads(listed.stdout)[0]["account"] == "acme", listed.stderr
        # A new certificate is taken on SIGHUP.
        before = ssl.get_server_certificate(("127.0.0.1", int(url.rsplit(":", 1)[1])))
        issue()
        gateway.child.send_signal(signal.SIGHUP)
        until(lambda: ssl.get_server_certificate(("127.0.0.1", int(url.rsplit(":", 1)[1]))) != before)
    finally:
        gateway.stop()
    done = subprocess.run([*command[:1], "check", *command[2:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (tmp_path / "key.pem").unlink()
    done = subprocess.run([*command[:1], "check", *command[2:]], capture_output=True, text=True)
    assert done.returncode == 1 and "admin.tls.key_file" in done.stderr
