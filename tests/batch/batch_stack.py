"""Processes that the tests of the batch tier run."""
import hashlib
import json
import urllib.request

from live import BIN, Process, rows

KEY = "tg_a_key_for_the_batch_tests_0123456789"
# Of other teams.
KEYS = {"one": KEY, "two": KEY + "_two", "three": KEY + "_three"}

# (dialect of the provider, what its items do)
MODELS = {
    "ob": ["fake-batch300", "fake-batch900-n6", "fake-bexpires-batch300-bpart50", "fake-bfails", "fake-bnever-batch400-bpart50",
           "fake-batch300-failfirst1", "fake-batch300-400", "fake-batch200-n10-in10",
           "fake-batch300-n7-in11", "fake-batch8000-bdeaf-n7-in11", "fake-bexpires-batch300-bpart50-n7-in11",
           "fake-ttft2500-n5-in9"],
    "fx": ["fake-n5-in9-x2", "fake-flexbusy2-n5-in9", "fake-noflex-n5-in9", "fake-flexbusy1000-n5-in9"],
    "ab": ["fake-batch300-x1", "fake-batch300-400-x1", "fake-bnever-batch400-bpart50-x1"],
    "gb": ["fake-batch300-n5-think3-in11-x4", "fake-batch300-tools-x4", "fake-batch300-400-x4", "fake-batch300-failfirst1-x4",
           "fake-bnever-batch400-bpart50-in11-x4", "fake-bexpires-batch300-in11-x4", "fake-bfails-x4", "fake-batch300-nousage-x4"],
}

CONFIG = """
listen: [{{address: "127.0.0.1:0"}}]
admin: {{address: "127.0.0.1:0"}}
policy: policy.yaml
providers:
  ob: {{dialect: openai_chat, base_url: "{fake}/v1", credential: "file:credential", batch: openai}}
  ab: {{dialect: anthropic, base_url: "{fake}/v1", credential: "file:credential", batch: anthropic}}
  gb: {{dialect: openai_chat, base_url: "{fake}/v1beta/openai", credential: "file:credential", batch: gemini}}
  fx: {{dialect: openai_chat, base_url: "{fake}/v1", credential: "file:credential", flex: true}}
  lo: {{dialect: openai_chat, base_url: "{local}/v1", credential: "file:credential"}}
accounts:
  acme:
    budgets: [{{limit_dollars: "{budget}", per: total}}{budgets}]
    teams:
      one: {{keys: {{tests: {{hash: "sha256:{hash}"}}}}}}
      two: {{keys: {{tests: {{hash: "sha256:{hash_two}"}}}}}}
      three: {{keys: {{tests: {{hash: "sha256:{hash_three}"}}}}}}
prices:
{prices}
batch:
  content_key: file:content
  poll_ms: 50
  gather_ms: {gather_ms}
  flex_again_ms: {flex_again_ms}
  rescue_call_ms: 500
  cancel_ms: 500
  over_budget: {over_budget}
  start_timeout_ms: {start_timeout_ms}
  webhook_hosts: ["127.0.0.1"]
log: {{filter: "warn,tollgate=info"}}
{more}
"""


class Gateway:
    """A gateway of its own, with its own fake."""

    def __init__(self, folder, **settings):
        self.folder = folder
        self.processes = []
        self.fake = self.start(BIN / "fake-provider", "listening on ")
        self.settings = {"budget": "100", "gather_ms": 100, "flex_again_ms": 30000, "over_budget": "refuse", "local": self.fake,
                         "budgets": "", "more": "", "start_timeout_ms": 90000} | settings
        (folder / "credential").write_text("sk-fake-credential")
        (folder / "content").write_text("a content key of some length")
        lines = ["version: 1", "deployments:"]
        prices = []
        for provider, models in MODELS.items():
            for model in models:
                lines.append(f"  - {{id: {model}, provider: {provider}, model: {model}, class: cheap, max_output_tokens: 100, capabilities: [tools, images, structured_output]}}")
                entry = f"  - {{provider: {provider}, model: {model}, "
                prices.append(entry + 'input_per_mtok: "1000", output_per_mtok: "2000"}')
                prices.append(entry + 'service_tier: flex, input_per_mtok: "500", output_per_mtok: "1000"}')
                prices.append(entry + 'service_tier: batch, input_per_mtok: "500", output_per_mtok: "1000"}')
        lines += ["  - {id: local, provider: lo, model: smollm2-135m-instruct, class: local, data_classes: [secret]}"]
        prices.append('  - {model: smollm2-135m-instruct, input_per_mtok: "0.1", output_per_mtok: "0.1"}')
        lines += ["routes:", "  - {name: secrets, when: {label: {data_class: secret}}, prefer: [local]}", "  - {name: all, prefer: [fake-batch300]}", "workflows:",
                  "  - {name: nightly, owner: one, value: low, latency: batch, value_per_success: \"1\"}",
                  "  - {name: patient, owner: one, value: low, latency: batch, value_per_success: \"1\", defer: {wait_s: 30}}",
                  "  - {name: hurried, owner: one, value: low, latency: batch, value_per_success: \"1\", defer: {wait_s: 1}}",
                  "  - {name: posted, owner: one, value: low, latency: deferred, value_per_success: \"1\", defer: {wait_s: 0}}"]
        (folder / "policy.yaml").write_text("\n".join(lines) + "\n")
        hashes = {f"hash_{team}".removesuffix("_one"): hashlib.sha256(key.encode()).hexdigest() for team, key in KEYS.items()}
        config = CONFIG.format(fake=self.fake, prices="\n".join(prices), **hashes, **self.settings)
        (folder / "tollgate.yaml").write_text(config)
        self.run()

    def run(self):
        self.url = self.start(BIN / "tollgate", "listening on ", "serve", "--config", self.folder / "tollgate.yaml")
        self.gateway = self.processes[-1]
        self.admin = self.gateway.address("admin on ")

    def start(self, program, lead, *arguments):
        self.processes.append(Process(str(program), *map(str, arguments)))
        return self.processes[-1].address(lead)

    def get(self, url):
        return json.load(urllib.request.urlopen(url))

    def batches(self):
        """What the fake has been given, as it stands."""
        return self.get(self.fake + "/_fake/batches")["batches"]

    def called(self):
        """Synchronous calls that the fake has had."""
        return self.get(self.fake + "/_fake/requests")

    def rows(self, query):
        return rows(self.folder, query)

    def stop(self):
        for process in reversed(self.processes):
            process.stop()
