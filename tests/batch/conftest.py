"""A gateway with batch providers, all of them fakes; what it runs on can be changed per test."""
import hashlib
import json
import os
import pathlib
import signal
import sqlite3
import subprocess
import time
import urllib.request

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / os.environ.get("TOLLGATE_PROFILE", "debug")
KEY = "tg_a_key_for_the_batch_tests_0123456789"

# (dialect of the provider, what its items do)
MODELS = {
    "ob": ["fake-batch300", "fake-batch900-n6", "fake-bexpires-batch300-bpart50", "fake-bfails", "fake-bnever-batch400-bpart50",
           "fake-batch300-failfirst1", "fake-batch300-400", "fake-batch200-n10-in10"],
    "ab": ["fake-batch300-x1", "fake-batch300-400-x1", "fake-bnever-batch400-bpart50-x1"],
}

CONFIG = """
listen: [{{address: "127.0.0.1:0"}}]
admin: {{address: "127.0.0.1:0"}}
policy: policy.yaml
providers:
  ob: {{dialect: openai_chat, base_url: "{fake}/v1", credential: "file:credential", batch: openai}}
  ab: {{dialect: anthropic, base_url: "{fake}/v1", credential: "file:credential", batch: anthropic}}
  lo: {{dialect: openai_chat, base_url: "{local}/v1"}}
accounts:
  acme:
    budgets: [{{limit_dollars: "{budget}", per: total}}]
    teams:
      one: {{keys: {{tests: {{hash: "sha256:{hash}"}}}}}}
prices:
{prices}
batch:
  content_key: file:content
  poll_ms: 50
  gather_ms: {gather_ms}
  rescue_call_ms: 500
  cancel_ms: 500
  over_budget: {over_budget}
  webhook_hosts: ["127.0.0.1"]
log: {{filter: "warn,tollgate=info"}}
"""


class Gateway:
    """A gateway of its own, with its own fake."""

    def __init__(self, folder, **settings):
        self.folder = folder
        self.children = []
        self.fake = self.start(BIN / "fake-provider", "listening on ")
        self.settings = {"budget": "100", "gather_ms": 100, "over_budget": "refuse", "local": self.fake} | settings
        (folder / "credential").write_text("sk-fake-credential")
        (folder / "content").write_text("a content key of some length")
        lines = ["version: 1", "deployments:"]
        prices = []
        for provider, models in MODELS.items():
            for model in models:
                lines.append(f"  - {{id: {model}, provider: {provider}, model: {model}, class: cheap, max_output_tokens: 100}}")
                entry = f"  - {{provider: {provider}, model: {model}, "
                prices.append(entry + 'input_per_mtok: "1000", output_per_mtok: "2000"}')
                prices.append(entry + 'service_tier: batch, input_per_mtok: "500", output_per_mtok: "1000"}')
        lines += ["  - {id: local, provider: lo, model: smollm2-135m-instruct, class: local}"]
        prices.append('  - {model: smollm2-135m-instruct, input_per_mtok: "0.1", output_per_mtok: "0.1"}')
        lines += ["routes:", "  - {name: all, prefer: [fake-batch300]}", "workflows:",
                  "  - {name: nightly, owner: one, value: low, latency: batch, value_per_success: \"1\"}"]
        (folder / "policy.yaml").write_text("\n".join(lines) + "\n")
        digest = hashlib.sha256(KEY.encode()).hexdigest()
        config = CONFIG.format(fake=self.fake, hash=digest, prices="\n".join(prices), **self.settings)
        (folder / "tollgate.yaml").write_text(config)
        self.run()

    def run(self):
        self.url = self.start(BIN / "tollgate", "listening on ", "serve", "--config", self.folder / "tollgate.yaml")
        self.gateway = self.children[-1]
        self.admin = next(line for line in self.gateway.stdout if line.startswith("admin on "))[len("admin on "):].strip()

    def start(self, program, lead, *arguments):
        child = subprocess.Popen([str(program), *map(str, arguments)], stdout=subprocess.PIPE, text=True)
        self.children.append(child)
        for line in child.stdout:
            if line.startswith(lead):
                return line[len(lead):].strip()
        raise RuntimeError(f"{program} ended")

    def kill(self):
        self.gateway.send_signal(signal.SIGKILL)
        self.gateway.wait()

    def get(self, url):
        return json.load(urllib.request.urlopen(url))

    def batches(self):
        """What the fake has been given, as it stands."""
        return self.get(self.fake + "/_fake/batches")["batches"]

    def called(self):
        """Synchronous calls that the fake has had."""
        return self.get(self.fake + "/_fake/requests")

    def rows(self, query):
        database = sqlite3.connect(f"file:{self.folder / 'tollgate.db'}?mode=ro", uri=True)
        try:
            return database.execute(query).fetchall()
        finally:
            database.close()

    def budget(self):
        return self.get(self.admin + "/v1/budgets")[0]

    def stop(self):
        for child in reversed(self.children):
            child.terminate()
        for child in self.children:
            child.wait(30)


@pytest.fixture(scope="session")
def gateway(tmp_path_factory):
    gateway = Gateway(tmp_path_factory.mktemp("batch"))
    yield gateway
    gateway.stop()


@pytest.fixture
def key():
    return KEY


@pytest.fixture
def own_gateway(tmp_path):
    """Makes gateways with settings of a test's own."""
    made = []

    def make(**settings):
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Gateway(folder, **settings))
        return made[-1]

    yield make
    for gateway in made:
        gateway.stop()
