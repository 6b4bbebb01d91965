"""Decisions end to end: value against a thin budget, thinking where it pays, efforts that a model does not know,
conversations that stay where their prefix is, outcomes, and rules that change while the gateway runs."""
import hashlib
import json
import subprocess
import time
import urllib.error
import urllib.request

import pytest

from live import BIN, Process

KEY = "tg_a_key_for_the_decision_tests_012345"

# Distinct labels (`x1`, `x2`, …) give the fake's one behaviour several names.
POLICY = """
version: 1
objective: {thin_budget: {below: 5, price_weight: 400}}
latency_tiers:
  interactive: {dollars_per_second: 0}
  standard: {dollars_per_second: 0}
deployments:
  - id: frontier
    provider: oa
    model: fake-n8-in4000-x1
    class: frontier
    capabilities: [tools, thinking]
    quality: {default: 0.9, extraction: {p: 0.95, thinking: {high: -0.05}}, proof: {p: 0.6, thinking: {low: 0.1, high: 0.3}}}
    thinking: {supported: [none, low, high]}
  - id: mid
    provider: oa
    model: fake-n8-in4000-x2
    class: cheap
    capabilities: [tools]
    quality: {default: 0.88, proof: 0.3}
  - {id: own, provider: oa, model: fake-n8-x3, class: local, quality: {default: 0.5, proof: 0.2, extraction: 0.3}}
workflows:
  - {name: contracts, value_per_success: 30, failure_cost: 30, value: high, task: extraction}
  - {name: proofs, value_per_success: 30, failure_cost: 30, value: high, task: proof}
  - {name: hints, value_per_success: 0.01, failure_cost: 0, value: low}
  - {name: agent, value_per_success: 0.30, failure_cost: 0, value: standard}
thinking:
  - {name: earn-it, when: {workflow: "*"}, level: by_gain, at_most: high}
floors: {high: [frontier]}
routes:
  - {name: gold, when: {label: {x-customer: gold}}, pin: frontier}
  - {name: all}
"""

CONFIG = """
listen: [{{address: "127.0.0.1:0"}}]
admin: {{address: "127.0.0.1:0"}}
records: records.jsonl
label_headers: [X-Customer]
providers:
  oa: {{dialect: openai_chat, base_url: "{fake}/v1", credential: "file:credential"}}
accounts:
  acme:
    budgets: [{{limit_dollars: "100", per: month}}]
    teams:
      rich: {{keys: {{one: {{hash: "sha256:{rich}"}}}}}}
      thin: {{budgets: [{{limit_dollars: "0.50", per: month}}], keys: {{two: {{hash: "sha256:{thin}"}}}}}}
prices:
  - {{model: "fake-n8-in4000-x1", input_per_mtok: "3", output_per_mtok: "15", cache_read_per_mtok: "0.3"}}
  - {{model: "fake-n8-in4000-x2", input_per_mtok: "1", output_per_mtok: "5", cache_read_per_mtok: "0.1"}}
  - {{model: "fake-n8-x3", input_per_mtok: "0", output_per_mtok: "0"}}
"""


class Desk:
    def __init__(self, folder):
        self.folder = folder
        self.fakes = Process(str(BIN / "fake-provider"))
        self.fake = self.fakes.address("listening on ")
        self.keys = {"rich": KEY + "_rich", "thin": KEY + "_thin"}
        hashed = {team: hashlib.sha256(key.encode()).hexdigest() for team, key in self.keys.items()}
        (folder / "credential").write_text("sk-fake-credential")
        (folder / "policy.yaml").write_text(POLICY)
        (folder / "tollgate.yaml").write_text(CONFIG.format(fake=self.fake, **hashed))
        self.start_gateway()

    def start_gateway(self):
        self.gateway = Process(str(BIN / "tollgate"), "serve", "--config", str(self.folder / "tollgate.yaml"))
        self.url = self.gateway.address("listening on ")
        self.admin = self.gateway.address("admin on ")

    def post(self, url, body, headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(url, data=data, headers={"content-type": "application/json", **headers})
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status, dict(answer.headers), json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), json.load(error)

    def ask(self, workflow=None, team="rich", content="hello there", headers=(), **body):
        headers = {"authorization": f"Bearer {self.keys[team]}", **dict(headers)}
        if workflow:
            headers["x-tollgate-workflow"] = workflow
        body = {"model": "auto", "messages": [{"role": "user", "content": content}], **body}
        status, head, answer = self.post(self.url + "/v1/chat/completions", body, headers)
        assert status == 200, answer
        return {name.removeprefix("x-tollgate-"): value for name, value in head.items()}

    def seen(self):
        return json.load(urllib.request.urlopen(self.fake + "/_fake/requests"))

    def stop(self):
        self.gateway.stop()
        self.fakes.stop()


@pytest.fixture()
def desk(tmp_path):
    desk = Desk(tmp_path)
    yield desk
    desk.stop()


def test_a_thin_budget_moves_the_cheap_work_and_not_the_valuable(desk):
    assert desk.ask("contracts")["deployment"] == "frontier"
    assert desk.ask("hints")["deployment"] == "mid"
    contracts, hints = desk.ask("contracts", "thin"), desk.ask("hints", "thin")
    assert (contracts["deployment"], contracts["class"], contracts["value"]) == ("frontier", "frontier", "high")
    assert (hints["deployment"], hints["class"], hints["reason"]) == ("own", "local", "objective")


def test_thinking_is_off_for_an_extraction_and_on_for_a_proof(desk):
    assert desk.ask("contracts")["thinking"] == "none; by_gain"
    assert desk.ask("proofs")["thinking"] == "high; by_gain"


def test_a_listed_header_is_a_label_and_a_body_cannot_claim_it(desk):
    assert desk.ask("hints", headers={"X-Customer": "gold"})["deployment"] == "frontier"
    assert desk.ask("hints", headers={"X-Customer": "lead"})["deployment"] == "mid"
    assert desk.ask("hints", metadata={"x-customer": "gold"})["deployment"] == "mid"


def test_an_effort_that_the_model_does_not_know_is_mapped_and_told(desk):
    head = desk.ask(model="fake-n8-in4000-x1", reasoning_effort="medium")
    assert (head["thinking"], head["reason"]) == ("low; mapped", "named")
    # A model that cannot think is not asked to.
    head = desk.ask(model="fake-n8-in4000-x2", reasoning_effort="high")
    assert head["thinking"] == "none; unable"


def test_answers_say_what_was_decided(desk):
    head = desk.ask("contracts")
    assert {"request-id", "deployment", "class", "value", "latency", "thinking", "policy", "reason", "workflow"} <= set(head)
    status, _, policy = 200, None, json.load(urllib.request.urlopen(desk.admin + "/admin/v1/policies"))
    assert policy["version"] == head["policy"] and "contracts" in policy["text"]


def test_a_conversation_stays_while_its_cache_saves_more_than_the_switch(desk):
    long = "word " * 4000

    def turn(number, effort=None):
        messages = [{"role": "user", "content": long}]
        for _ in range(number):
            messages += [{"role": "assistant", "content": "yes"}, {"role": "user", "content": "go on"}]
        more = {"reasoning_effort": effort} if effort else {}
        return desk.ask("agent", messages=messages, **more)

    assert turn(0)["deployment"] == "mid"
    # The dearer model, asked for by name, has the prefix now: it stays, though mid is the better choice without it.
    messages = [{"role": "user", "content": long + "two"}]
    assert desk.ask("agent", messages=messages)["deployment"] == "mid"
    assert desk.ask("agent", model="fake-n8-in4000-x1", messages=messages)["deployment"] == "frontier"
    head = desk.ask("agent", messages=messages + [{"role": "assistant", "content": "yes"}, {"role": "user", "content": "go on"}])
    assert (head["deployment"], head["reason"]) == ("frontier", "sticky")


def test_outcomes_change_what_is_believed(desk):
    assert desk.ask("hints")["deployment"] == "mid"
    for _ in range(30):
        head = desk.ask("hints")
        if head["deployment"] != "mid":
            break
        status, _, answer = desk.post(desk.url + "/v1/outcomes", {"request_id": head["request-id"], "success": False},
                                      {"authorization": f"Bearer {desk.keys['rich']}"})
        assert (status, answer) == (200, {"requests": 1})
    assert desk.ask("hints")["deployment"] != "mid", "thirty failures should be enough"
    # Records are kept here, and with them the outcomes: a new process knows them.
    time.sleep(1)
    desk.gateway.stop()
    desk.start_gateway()
    assert desk.ask("hints")["deployment"] != "mid"
    status, _, answer = desk.post(desk.url + "/v1/outcomes", {"success": True}, {"authorization": f"Bearer {desk.keys['rich']}"})
    assert status == 400 and "request_id" in answer["error"]["message"]


def test_rules_change_while_the_gateway_runs_and_never_for_the_worse(desk):
    before = desk.ask("contracts")["policy"]
    # A mistake: told with its line, and nothing changes.
    status, _, answer = desk.post(desk.admin + "/admin/v1/policies", POLICY.replace("class: cheap", "class: cheep").encode(), {})
    assert status == 422 and answer["mistakes"][0]["hint"] == "did you mean `cheap`?"
    assert answer["mistakes"][0]["line"] == 18
    # A downgrade of valuable work that nobody approved.
    weaker = POLICY.replace("floors: {high: [frontier]}", "").replace("quality: {default: 0.9, extraction: {p: 0.95", "quality: {default: 0.9, extraction: {p: 0.05")
    status, _, answer = desk.post(desk.admin + "/admin/v1/policies", weaker.encode(), {})
    assert status == 422 and "approved_by" in answer["mistakes"][0]["hint"]
    assert desk.ask("contracts")["policy"] == before
    # A good one, over the API; it is in the file too.
    better = POLICY.replace("value_per_success: 0.01", "value_per_success: 0.02")
    status, _, answer = desk.post(desk.admin + "/admin/v1/policies", better.encode(), {})
    assert status == 200, answer
    assert desk.ask("contracts")["policy"] == answer["version"] != before
    assert (desk.folder / "policy.yaml").read_text() == better
    # And one by the file.
    (desk.folder / "policy.yaml").write_text(POLICY)
    deadline = time.time() + 10
    while desk.ask("hints")["policy"] != before and time.time() < deadline:
        time.sleep(0.2)
    assert desk.ask("hints")["policy"] == before


def test_records_replay_without_a_flip(desk):
    for workflow in ["contracts", "hints", "proofs", "agent", None] * 4:
        desk.ask(workflow)
    time.sleep(1.5)
    replayed = subprocess.run([BIN / "policy", "replay", "--json", "--records", desk.folder / "records.jsonl",
                               "--policy", desk.folder / "policy.yaml"], check=True, capture_output=True, text=True)
    summary = json.loads(replayed.stdout)["summary"]
    assert (summary["requests"], summary["flips"]) == (20, 0)
    assert summary["money_was"] == summary["money_is"] > 0
