"""What operators see of jobs and do with them: `tollgate jobs`, rescue by hand, and metrics."""
import json
import re
import subprocess
import urllib.error
import urllib.request
import uuid

from batch_stack import KEYS
from live import BIN
from waiting import until

# 11 tokens in and 7 out; as a batch $500 and $1000 a million tokens.
BATCH = 11 * 500_000 + 7 * 1_000_000
QUICK = "fake-batch300-n7-in11"
# Done after 8 s, whatever it is told.
DEAF = "fake-batch8000-bdeaf-n7-in11"
# Half of it is done when it is told to stop, never before.
ENDLESS = "fake-bnever-batch400-bpart50"


def call(gateway, path, body=None, team="one"):
    request = urllib.request.Request(gateway.url + path, data=json.dumps(body).encode() if body else None)
    request.add_header("authorization", f"Bearer {KEYS[team]}")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        return json.load(error)


def job(gateway, model, team="one", **more):
    body = {"model": model, "max_tokens": 20, "messages": [{"role": "user", "content": uuid.uuid4().hex}]}
    return call(gateway, "/v1/jobs", {"body": body, "deadline_s": 3600} | more, team)["id"]


def items(gateway, job):
    return gateway.rows(f"SELECT state, way, charge, problem FROM job_items WHERE job = '{job}'")


def cli(gateway, *arguments):
    run = subprocess.run([BIN / "tollgate", *arguments, "--url", gateway.admin], capture_output=True, text=True)
    return run.stdout + run.stderr


def listed(gateway, job):
    """The row of a job in `jobs list`, by column."""
    text = cli(gateway, "jobs", "list").splitlines()
    row = next(line for line in text if line.startswith(job))
    return dict(zip(re.split(r"  +", text[0].strip()), re.split(r"  +", row.strip())))


def test_what_a_provider_has_is_rescued_by_hand_and_its_late_answer_is_charged(own_gateway):
    gateway = own_gateway(gather_ms=800)
    one, other = job(gateway, DEAF), job(gateway, DEAF)
    until(lambda: items(gateway, one)[0][0] == items(gateway, other)[0][0] == "submitted")
    assert len(gateway.batches()) == 1, "both in one batch"
    held = 2 * int(gateway.rows(f"SELECT held FROM job_items WHERE job = '{one}'")[0][0])
    assert "is running: 0 of 1 items done (1 submitted); $0.00 spent" in cli(gateway, "jobs", "show", one)
    assert f"${held / 2e9} held" in cli(gateway, "jobs", "show", one)
    cli(gateway, "jobs", "rescue", one)
    # Answered at once, at twice the price; what waits in the same batch is left alone.
    assert until(lambda: items(gateway, one)[0][0] == "rescued" and items(gateway, one)) == [("rescued", "standard", 2 * BATCH, "")]
    assert items(gateway, other)[0][:2] == ("submitted", "batch")
    assert gateway.batches()[0]["cancel_us"] is None
    row = listed(gateway, one)
    assert (row["STATE"], row["ITEMS"], row["DONE"], row["RESCUED"]) == ("ended", "1", "1", "1")
    assert float(row["COST $"]) == 2 * BATCH / 1e9 and float(row["HELD $"]) == 0
    assert (row := listed(gateway, other))["DONE"] == "0" and float(row["HELD $"]) == held / 2e9
    assert "ended already" in cli(gateway, "jobs", "rescue", one) or "is ended" in cli(gateway, "jobs", "rescue", one)
    # The batch answers both: one is late, and charged once for all that.
    assert until(lambda: items(gateway, other)[0][0] == "succeeded" and items(gateway, other))[0][2] == BATCH
    assert until(lambda: items(gateway, one)[0][2] == 3 * BATCH and items(gateway, one))[0][0] == "rescued"
    assert until(lambda: gateway.rows("SELECT count(*), sum(charge), sum(late) FROM requests") == [(3, 4 * BATCH, 1)])
    assert until(lambda: gateway.rows("SELECT sum(spent) FROM budget_windows") == [(4 * BATCH,)])
    assert until(lambda: gateway.rows("SELECT state FROM packs") == [("settled",)])
    assert f"${3 * BATCH / 1e9} spent, $0.00 held" in cli(gateway, "jobs", "show", one)


def test_a_batch_of_which_all_was_rescued_is_cancelled(own_gateway):
    gateway = own_gateway()
    one = job(gateway, ENDLESS)
    until(lambda: items(gateway, one)[0][0] == "submitted")
    cli(gateway, "jobs", "rescue", one)
    until(lambda: items(gateway, one)[0][0] == "rescued")
    assert until(lambda: gateway.rows("SELECT state FROM packs") == [("void",)])
    assert [found["phase"] for found in gateway.batches()] == ["cancelled"]
    calls = gateway.rows("SELECT count(*), sum(charge), sum(late) FROM requests")
    assert calls == [(1, items(gateway, one)[0][2], 0)], "charged once"


def test_what_was_held_for_a_batch_pays_for_the_rescue(own_gateway):
    """A budget that pays for an item at the usual price, but not with what is held for its batch beside it."""
    gateway = own_gateway(budget="0.065", gather_ms=60000)
    one = job(gateway, QUICK)
    held = gateway.rows(f"SELECT held FROM job_items WHERE job = '{one}'")[0][0]
    assert 3 * held > 65_000_000 > 2 * held
    cli(gateway, "jobs", "rescue", one)
    assert until(lambda: items(gateway, one)[0][0] in ("rescued", "errored") and items(gateway, one)) == [("rescued", "standard", 2 * BATCH, "")]
    assert gateway.batches() == [] and "1 of 1 items done (1 rescued)" in cli(gateway, "jobs", "show", one)


def metrics(gateway):
    """Values by name and team, and what each name says it is."""
    text = urllib.request.urlopen(gateway.admin + "/metrics").read().decode()
    values = {(name, team): float(value) for name, team, value in
              re.findall(r'^tollgate_job_(\w+)\{org="acme",team="(\w+)"\} (\S+)$', text, re.M)}
    return values, dict(re.findall(r"^# HELP tollgate_job_(\w+) (.*)$", text, re.M))


def test_metrics_of_jobs_by_team(own_gateway):
    gateway = own_gateway(start_timeout_ms=9500, budget="5", gather_ms=50)
    done, lost, late = job(gateway, QUICK), job(gateway, "fake-bfails"), job(gateway, "fake-ttft2500-n5-in9", "two", deadline_s=1)
    for one in (done, lost, late):
        until(lambda: gateway.rows(f"SELECT ended_us > 0 FROM jobs WHERE id = '{one}'") == [(1,)])
    waits = job(gateway, ENDLESS, "two")
    # One that the budget does not pay for never began.
    assert "budget" in call(gateway, "/v1/jobs", {"body": {"model": QUICK, "messages": [{"role": "user", "content": "x " * 40_000}]}})["error"]["message"]
    rescued = gateway.rows(f"SELECT charge, saved FROM job_items WHERE job = '{lost}'")[0]
    wanted = {("items_open", "one"): 0, ("items_open", "two"): 1, ("items_rescued", "one"): 1, ("items_rescued", "two"): 0,
              ("deadlines_missed", "one"): 0, ("deadlines_missed", "two"): 1, ("age_seconds", "one"): 0, ("slack_seconds", "one"): 0,
              ("charged_dollars", "one"): (BATCH + rescued[0]) / 1e9, ("saved_dollars", "one"): (BATCH + rescued[1]) / 1e9}
    assert rescued[1] < 0, "a rescue costs more than the batch would have"

    def told():
        values, _ = metrics(gateway)
        return {name: round(value, 9) for name, value in values.items() if name in wanted} == {
            name: round(value, 9) for name, value in wanted.items()} and values

    first = until(told, 20)
    assert 3500 < first["slack_seconds", "two"] <= 3600 and 0 < first["age_seconds", "two"] < 60
    second = until(lambda: (found := metrics(gateway)[0])["age_seconds", "two"] > first["age_seconds", "two"] and found, 20)
    assert second["slack_seconds", "two"] < first["slack_seconds", "two"], "time passes"
    cli(gateway, "jobs", "cancel", waits)
    until(lambda: (found := metrics(gateway)[0])["items_open", "two"] == 0 == found["slack_seconds", "two"] and found, 20)
    assert metrics(gateway)[0]["deadlines_missed", "two"] == 1, "a cancel misses nothing"
    assert set(metrics(gateway)[1]) == {"items_open", "age_seconds", "slack_seconds", "items_rescued", "deadlines_missed",
                                        "charged_dollars", "saved_dollars"}
