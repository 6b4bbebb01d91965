"""What the gateway believes end to end: the predictor where a policy asks for it, outcomes and retries that outlive a
process, decisions kept in the ledger and ruled on again, and the share of output that anybody can read."""
import json
import subprocess
import time
import urllib.request

import pytest

from live import BIN, rows
from test_decisions import Desk

POLICY = """
version: 1
latency_tiers:
  interactive: {dollars_per_second: 0}
  standard: {dollars_per_second: 0}
deployments:
  - {id: frontier, provider: oa, model: fake-n8-x1, class: frontier, quality: {default: 0.95}}
  - {id: mini, provider: oa, model: fake-n8-x2, class: cheap, quality: {default: 0.75}}
  - {id: thinker, provider: oa, model: fake-think6-n5, class: cheap, capabilities: [thinking], quality: {default: 0.5}}
workflows:
  - {name: questions, value_per_success: 0.05, failure_cost: 0.02, value: standard, predict: true}
  - {name: blind, value_per_success: 0.05, failure_cost: 0, value: standard}
routes:
  - {name: all, allow: [frontier, mini], fallback: [thinker]}
"""

CONFIG = """
listen: [{{address: "127.0.0.1:0"}}]
admin: {{address: "127.0.0.1:0"}}
store: {{decisions: true}}
records: records.jsonl
providers:
  oa: {{dialect: openai_chat, base_url: "{fake}/v1", credential: "file:credential"}}
accounts:
  acme:
    budgets: [{{limit_dollars: "100", per: month}}]
    teams:
      rich: {{keys: {{one: {{hash: "sha256:{rich}"}}}}}}
      thin: {{budgets: [{{limit_dollars: "0.000001", per: month}}], keys: {{two: {{hash: "sha256:{thin}"}}}}}}
prices:
  - {{model: "fake-n8-x1", input_per_mtok: "3", output_per_mtok: "15"}}
  - {{model: "fake-n8-x2", input_per_mtok: "0.15", output_per_mtok: "0.6"}}
  - {{model: "fake-think6-n5", input_per_mtok: "0.15", output_per_mtok: "0.6"}}
"""

EASY = "A baker sells 12 loaves a day at 3 dollars each. How many dollars does he earn in a week of 7 days?"
ODD = "ζ∘ζ ≔ λx.⟦x⟧ ⊢ ∀∃ " * 8


@pytest.fixture()
def desk(tmp_path, monkeypatch):
    monkeypatch.setattr("test_decisions.POLICY", POLICY)
    monkeypatch.setattr("test_decisions.CONFIG", CONFIG)
    desk = Desk(tmp_path)
    yield desk
    desk.stop()


def tell(desk, outcome, team="rich"):
    status, _, answer = desk.post(desk.url + "/v1/outcomes", outcome, {"authorization": f"Bearer {desk.keys[team]}"})
    return status, answer


def settled(desk, query, wanted):
    """The rows once the ledger has written what it has."""
    deadline = time.time() + 10
    while (found := rows(desk.folder, query)) != wanted and time.time() < deadline:
        time.sleep(0.1)
    return found


def policy(*arguments, program="policy"):
    command = [BIN / program] + (["policy"] if program == "tollgate" else [])
    return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True)


def test_an_easy_prompt_moves_to_the_cheap_model_and_an_unfamiliar_one_stays(desk):
    # Without the predictor the two are alike; with it, only what it knows moves.
    assert [desk.ask("blind", content=prompt)["deployment"] for prompt in (EASY, ODD)] == ["frontier", "frontier"]
    assert [desk.ask("questions", content=prompt)["deployment"] for prompt in (EASY, ODD)] == ["mini", "frontier"]
    # What was predicted is recorded, and the prompt is not.
    settled(desk, "SELECT count(*) FROM decisions", [(4,)])
    time.sleep(1)
    lines = (desk.folder / "records.jsonl").read_text()
    stored = json.dumps([decision for decision, in rows(desk.folder, "SELECT decision FROM decisions")])
    assert "baker" not in lines + stored and "∘" not in lines + stored and "\\u2218" not in lines + stored
    easy, odd = [json.loads(line) for line in lines.splitlines()][2:]
    assert easy["decided"]["score"]["source"] == "predictor" and odd["decided"]["score"]["source"] == "prior"
    assert easy["estimates"]["familiarity"] > 0.5 > odd["estimates"]["familiarity"] and len(easy["features"]) > 60


def test_the_ledger_replays_without_a_flip_and_to_the_nano_dollar(desk):
    for number in range(12):
        desk.ask(["questions", "blind", None][number % 3], content=EASY if number % 2 else ODD)
    status, _, answer = desk.post(desk.url + "/v1/chat/completions", {"model": "auto", "messages": [{"role": "user", "content": EASY}]},
                                  {"authorization": f"Bearer {desk.keys['thin']}"})
    assert status == 429, answer
    settled(desk, "SELECT count(*) FROM decisions", [(13,)])
    desk.gateway.stop()
    charged = rows(desk.folder, "SELECT sum(charge) FROM requests")[0][0]
    same = ["replay", "--from-ledger", "--policy", desk.folder / "policy.yaml", "--json"]
    by_config = policy(*same, "--config", desk.folder / "tollgate.yaml")
    summary = json.loads(by_config.stdout)["summary"]
    assert (summary["requests"], summary["flips"], summary["unpredicted"]) == (13, 0, 0)
    assert summary["money_was"] == summary["money_is"] == charged > 0
    assert summary["budget_refusals"]["was"] == summary["budget_refusals"]["is"] == 1
    by_store = policy(*same, "--store", desk.folder / "tollgate.db", program="tollgate")
    assert json.loads(by_store.stdout)["summary"] == summary
    none = policy(*same, "--store", desk.folder / "tollgate.db", "--until", "2020-01-01", program="tollgate")
    assert none.returncode == 2 and "holds no records" in none.stderr
    # Another policy: everything goes to mini, for less.
    cheap = desk.folder / "cheap.yaml"
    cheap.write_text(POLICY.replace("allow: [frontier, mini]", "prefer: [mini]"))
    other = policy("replay", "--from-ledger", "--store", desk.folder / "tollgate.db", "--policy", cheap, "--json")
    summary = json.loads(other.stdout)["summary"]
    assert summary["flips"] == 6 and summary["money_is"] < summary["money_was"]
    assert summary["class_shifts"] == {"- -> -": 1, "cheap -> cheap": 6, "frontier -> cheap": 6}
    # The same records as a file.
    told = policy("records", "--from-ledger", "--store", desk.folder / "tollgate.db", "--out", desk.folder / "all.jsonl")
    assert told.returncode == 0 and "13 records" in told.stdout, told.stderr
    by_file = policy("replay", "--records", desk.folder / "all.jsonl", "--policy", cheap, "--json")
    assert json.loads(by_file.stdout)["summary"] == summary


def test_outcomes_have_a_value_and_a_note_and_outlive_the_process(desk):
    first = desk.ask("questions", content=EASY)
    assert first["deployment"] == "mini"
    assert tell(desk, {"request_id": first["request-id"], "success": True, "value": 1.25, "note": "as it should be"}) == (200, {"requests": 1})
    assert tell(desk, {"request_id": first["request-id"], "success": False}) == (200, {"requests": 1})
    assert tell(desk, {"request_id": first["request-id"], "success": True, "value": "dear"})[0] == 400
    stored = rows(desk.folder, "SELECT workflow, deployment, success, value, stated, note FROM outcomes")
    assert stored == [("questions", "mini", 1, 1_250_000_000, 1, "as it should be")]
    last = desk.ask("questions", content=EASY)
    for _ in range(40):
        head = desk.ask("questions", content=EASY)
        if head["deployment"] != "mini":
            break
        tell(desk, {"request_id": head["request-id"], "success": False})
    assert head["deployment"] == "frontier", "forty failures should be enough"
    assert rows(desk.folder, "SELECT DISTINCT value, stated FROM outcomes WHERE success = 0") == [(-20_000_000, 0)]
    desk.gateway.stop()
    desk.start_gateway()
    deadline = time.time() + 10
    while (head := desk.ask("questions", content=EASY))["deployment"] == "mini" and time.time() < deadline:
        time.sleep(0.1)
    assert head["deployment"] == "frontier"
    # Of a request that an earlier process served, the ledger knows by whom.
    assert tell(desk, {"request_id": last["request-id"], "success": True}) == (200, {"requests": 1})
    assert tell(desk, {"request_id": last["request-id"], "success": True}, "thin")[0] == 200
    # Features and outcomes together are what a predictor of one's own is trained on.
    settled(desk, "SELECT count(*) > 2 FROM decisions", [(1,)])
    policy("records", "--from-ledger", "--store", desk.folder / "tollgate.db", "--out", desk.folder / "all.jsonl")
    lines = [json.loads(line) for line in (desk.folder / "all.jsonl").read_text().splitlines()]
    count = sum("outcome" in line for line in lines)
    assert count == rows(desk.folder, "SELECT count(*) FROM outcomes")[0][0]
    # As if it had gone on for longer.
    (desk.folder / "many.jsonl").write_text((desk.folder / "all.jsonl").read_text() * 50)
    trained = policy("train", "--from", desk.folder / "many.jsonl", "--out", desk.folder / "mine.bin")
    assert trained.returncode == 0 and f"{50 * count} of {50 * len(lines)} lines" in trained.stdout, trained.stderr
    with open(desk.folder / "tollgate.yaml", "a") as config:
        config.write("predictor: mine.bin\n")
    desk.gateway.stop()
    desk.start_gateway()
    assert desk.ask("questions", content=EASY)["deployment"]


def test_requests_made_again_are_counted_and_kept(desk):
    run = {"x-tollgate-tag-run": "r1"}
    for _ in range(25):
        desk.ask("questions", content=EASY, headers=run)
    desk.gateway.stop()
    assert rows(desk.folder, "SELECT workflow, deployment, calls, retries, escalations FROM answered") == [("questions", "mini", 25, 24, 0)]
    desk.start_gateway()
    deadline, retries = time.time() + 15, {"mini": 0}
    while retries["mini"] == 0 and time.time() < deadline:
        count = len((desk.folder / "records.jsonl").read_text().splitlines())
        desk.ask("questions", content=EASY)
        while len(lines := (desk.folder / "records.jsonl").read_text().splitlines()) == count and time.time() < deadline:
            time.sleep(0.1)
        retries = {deployment: offer["retry_permille"] for deployment, offer in json.loads(lines[-1])["offers"]}
    assert 700 < retries["mini"] <= 960 and retries["frontier"] == 0


def test_a_policy_in_which_lint_finds_an_error_is_refused(desk):
    before = desk.ask("blind")["policy"]
    shadowed = POLICY.replace("routes:\n", "routes:\n  - {name: first}\n")
    status, _, answer = desk.post(desk.admin + "/admin/v1/policies", shadowed.encode(), {})
    mistake = answer["mistakes"][0]
    assert status == 422 and "unreachable_rule" in mistake["problem"] and mistake["line"] == 15 and mistake["hint"], answer
    (desk.folder / "policy.yaml").write_text(shadowed)
    time.sleep(2.5)
    assert desk.ask("blind")["policy"] == before
    desk.gateway.stop()
    started = subprocess.run([BIN / "tollgate", "serve", "--config", desk.folder / "tollgate.yaml"], capture_output=True, text=True, timeout=20)
    assert started.returncode == 1 and "lint" in started.stderr
    checked = subprocess.run([BIN / "tollgate", "check", "--config", desk.folder / "tollgate.yaml"], capture_output=True, text=True)
    assert checked.returncode == 1 and "unreachable_rule" in checked.stdout
    (desk.folder / "policy.yaml").write_text(POLICY)
    desk.start_gateway()


def test_the_visible_share_is_a_metric(desk):
    desk.ask("blind", model="fake-think6-n5")
    deadline = time.time() + 10
    while "tollgate_visible_share{" not in (metrics := urllib.request.urlopen(desk.admin + "/metrics").read().decode()):
        assert time.time() < deadline, metrics
        time.sleep(0.05)
    assert 'tollgate_output_tokens_total{workflow="blind",model="fake-think6-n5",kind="reasoning"} 6' in metrics, metrics
    share = [line for line in metrics.splitlines() if line.startswith('tollgate_visible_share{workflow="blind"')]
    assert len(share) == 1 and abs(float(share[0].split()[-1]) - 5 / 11) < 1e-9
