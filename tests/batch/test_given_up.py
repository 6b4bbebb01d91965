"""A provider that goes on with a batch that was given up bills what it answers: the ledger says so."""
import json
import urllib.request
import uuid

from batch_stack import KEY
from waiting import until

# Done after 8 s, whatever it is told. 11 tokens in and 7 out; as a batch $500 and $1000 a million tokens.
MODEL = "fake-batch8000-bdeaf-n7-in11"
BATCH = 11 * 500_000 + 7 * 1_000_000


def job(gateway, deadline_s):
    body = {"endpoint": "/v1/chat/completions", "deadline_s": deadline_s,
            "body": {"model": MODEL, "max_tokens": 20, "messages": [{"role": "user", "content": uuid.uuid4().hex}]}}
    request = urllib.request.Request(gateway.url + "/v1/jobs", data=json.dumps(body).encode())
    request.add_header("authorization", f"Bearer {KEY}")
    return json.load(urllib.request.urlopen(request))["id"]


def test_what_a_deaf_batch_answers_after_its_rescue_is_charged_once_and_marked(own_gateway):
    gateway = own_gateway()
    state = "SELECT state, charge FROM job_items WHERE job = '{}' AND ended_us > 0"
    # A first one teaches how long they take, so that the next is tried as a batch.
    first = job(gateway, 3600)
    assert until(lambda: gateway.rows(state.format(first))) == [("succeeded", BATCH)]
    second = job(gateway, 7)
    # Answered by the usual tier at twice the price, in time.
    assert until(lambda: gateway.rows(state.format(second))) == [("rescued", 2 * BATCH)]
    # The batch goes on, is done after the deadline, and is paid too.
    assert until(lambda: gateway.rows(state.format(second)) == [("rescued", 3 * BATCH)])
    late = "SELECT r.charge, r.late, r.ending, r.origin, r.org, r.team, r.key, a.outcome, a.tier FROM requests r JOIN attempts a ON a.request = r.id WHERE late"
    assert gateway.rows(late) == [(BATCH, 1, "client_gone", "batch", "acme", "one", "tests", "cancelled", "batch")]
    # The provider's truth: two batches' answers and one call, to the last nano-dollar.
    assert sum(item["output_tokens"] for found in gateway.batches() for item in found["items"]) == 14
    assert until(lambda: gateway.rows("SELECT sum(charge) FROM requests") == [(4 * BATCH,)])
    assert until(lambda: gateway.rows("SELECT sum(spent) FROM budget_windows") == [(4 * BATCH,)])
    assert until(lambda: gateway.rows("SELECT DISTINCT state FROM packs ORDER BY 1") == [("settled",), ("void",)])
