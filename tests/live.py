"""Starts real processes on free ports: a fake provider, local-backend with the real model, and the gateway."""
import hashlib
import json
import os
import pathlib
import socket
import sqlite3
import subprocess
import time
import urllib.error
import urllib.request

import trustme

ROOT = pathlib.Path(__file__).resolve().parents[1]
# TOLLGATE_PROFILE=release measures what users run; the default is what `cargo build` left.
BIN = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / os.environ.get("TOLLGATE_PROFILE", "debug")
MODEL = ROOT / ".run/models/smollm2-135m-instruct-q4_1.gguf"
KEY = "tg_a_key_for_the_sdk_tests_0123456789"
# Of a team that may make two requests a minute, and of one whose money does not pay for one.
LIMITED_KEYS = {"openai": "tg_limited_to_two_requests_openai_0123", "anthropic": "tg_limited_to_two_requests_anthropic_01"}
POOR_KEY = "tg_a_key_without_enough_money_0123456789"

POLICY = """
version: 1
deployments:
  - {id: oa, provider: oa, model: fake-n12, class: cheap, capabilities: [tools, images, structured_output]}
  - {id: oa-tools, provider: oa, model: fake-tools, class: cheap, capabilities: [tools]}
  - {id: oa-429, provider: oa, model: fake-429, class: cheap}
  - {id: oa-400, provider: oa, model: fake-400, class: cheap}
  - {id: oa-500, provider: oa, model: fake-500, class: cheap}
  - {id: paced, provider: oa, model: fake-gap10-n300, class: cheap}
  - {id: hang, provider: oa, model: fake-hang, class: cheap}
  - {id: paced-h2, provider: oh, model: fake-gap10-n300-x2, class: cheap}
  - {id: hang-h2, provider: oh, model: fake-hang-x2, class: cheap}
  - {id: single, provider: oa, model: fake-ttft400-n5, class: cheap, max_in_flight: 1}
  - {id: echo, provider: oa, model: fake-echo, class: cheap}
  - {id: cut, provider: oa, model: fake-n40-cut7, class: cheap}
  - {id: an, provider: an, model: fake-n13, class: frontier, capabilities: [tools, images, thinking]}
  - {id: an-tools, provider: an, model: fake-tools-n9, class: frontier, capabilities: [tools]}
  - {id: an-think, provider: an, model: fake-think6-n5, class: frontier, capabilities: [thinking]}
  - {id: local, provider: local, model: smollm2-135m-instruct, class: local, context_tokens: 8192, capabilities: [tools]}
routes:
  - {name: all, prefer: [oa]}
"""

CONFIG = """
listen:
  - {{address: "127.0.0.1:0"}}
  - {{address: "127.0.0.1:0", tls: {{certificate_file: certificate.pem, key_file: key.pem}}}}
admin: {{address: "127.0.0.1:0"}}
providers:
  oa: {{dialect: openai_chat, base_url: "{fake}/v1", credential: "file:credential"}}
  oh: {{dialect: openai_chat, base_url: "{fake}/v1", credential: "file:credential", http2: true}}
  an: {{dialect: anthropic, base_url: "{fake}/v1", credential: "file:credential"}}
  local: {{dialect: openai_chat, base_url: "{local}/v1"}}
accounts:
  acme:
    budgets: [{{limit_dollars: "100", per: month}}]
    teams:
      sdk: {{keys: {{tests: {{hash: "sha256:{hash}"}}}}}}
      limited:
        rate_limits: {{tokens_per_minute: 1000000, concurrency: 10}}
        keys:
          openai: {{hash: "sha256:{limited_openai}", rate_limits: {{requests_per_minute: 2}}}}
          anthropic: {{hash: "sha256:{limited_anthropic}", rate_limits: {{requests_per_minute: 2}}}}
      poor:
        budgets: [{{limit_dollars: "0.000000001", per: month}}]
        keys: {{tests: {{hash: "sha256:{poor}"}}}}
unpriced_ceiling_dollars: "0.001"
"""


class Process:
    """A process whose addresses are read from the lines it prints."""

    def __init__(self, *command):
        self.child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def address(self, lead):
        for line in self.child.stdout:
            if line.startswith(lead):
                return line[len(lead):].strip()
        raise RuntimeError(f"{self.child.args[0]} ended without saying `{lead}`")

    def stop(self):
        self.child.terminate()
        self.child.wait(30)


def rows(folder, query):
    """Reads the database of the ledger that a gateway keeps in its folder."""
    database = sqlite3.connect(f"file:{folder / 'tollgate.db'}?mode=ro", uri=True)
    try:
        return database.execute(query).fetchall()
    finally:
        database.close()


class Stack:
    """Everything at once. The gateway alone can be killed and started again."""

    def __init__(self, folder):
        self.folder = folder
        assert MODEL.exists(), "the model is missing: run deploy/fetch-model.sh"
        self.processes = []
        self.fake = self.start("listening on ", BIN / "fake-provider")
        self.local = self.start("listening on ", BIN / "local-backend", "serve", "--model", MODEL, "--listen", "127.0.0.1:0")
        (folder / "credential").write_text("sk-fake-credential")
        issued = trustme.CA().issue_cert("localhost")
        issued.private_key_pem.write_to_path(folder / "key.pem")
        issued.cert_chain_pems[0].write_to_path(folder / "certificate.pem")
        (folder / "policy.yaml").write_text(POLICY)
        hashes = {f"limited_{name}": key for name, key in LIMITED_KEYS.items()} | {"hash": KEY, "poor": POOR_KEY}
        hashes = {name: hashlib.sha256(key.encode()).hexdigest() for name, key in hashes.items()}
        (folder / "tollgate.yaml").write_text(CONFIG.format(fake=self.fake, local=self.local, **hashes))
        self.start_gateway()
        for _ in range(300):
            try:
                urllib.request.urlopen(self.local + "/health")
                break
            except urllib.error.HTTPError:
                time.sleep(0.1)

    def start_gateway(self):
        self.url = self.start("listening on ", BIN / "tollgate", "serve", "--config", self.folder / "tollgate.yaml")
        self.gateway = self.processes[-1]
        self.tls_url = self.gateway.address("listening on ")

    def seen(self):
        """What the fake provider saw, one entry per request."""
        return json.load(urllib.request.urlopen(self.fake + "/_fake/requests"))

    def forget(self):
        urllib.request.urlopen(urllib.request.Request(self.fake + "/_fake", method="DELETE"))

    def rows(self, query):
        return rows(self.folder, query)

    def count(self):
        """Rows in the ledger once it has written what it has."""
        time.sleep(0.4)
        return self.rows("SELECT count(*) FROM requests")[0][0]

    def send(self, model, stream, content="hello there"):
        """A request on a connection of its own, which can be dropped at any moment."""
        host, port = self.url.removeprefix("http://").split(":")
        body = json.dumps({"model": model, "stream": stream, "messages": [{"role": "user", "content": content}]}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {KEY}\r\ncontent-length: {len(body)}\r\n\r\n"
        connection = socket.create_connection((host, int(port)))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(head.encode() + body)
        return connection

    def start(self, lead, *command):
        process = Process(*map(str, command))
        self.processes.append(process)
        return process.address(lead)

    def stop(self):
        for process in reversed(self.processes):
            process.stop()
