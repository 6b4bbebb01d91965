"""The money of jobs: held before anything is sent, charged once by item, never beyond the budget."""
import io
import json
import uuid

import openai
import pytest
from batch_stack import KEY
from waiting import until

# $500 and $1000 a million tokens as a batch: an item of 10 tokens in and at most 10 out is held at about $0.0225.
MODEL = "fake-batch200-n10-in10"


def client(gateway):
    return openai.OpenAI(base_url=gateway.url + "/v1", api_key=KEY, max_retries=0)


def upload(sdk, count):
    name = uuid.uuid4().hex
    lines = [json.dumps({
        "custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions",
        "body": {"model": MODEL, "max_tokens": 10, "messages": [{"role": "user", "content": f"{name} {number}"}]},
    }) for number in range(count)]
    return sdk.files.create(file=("r.jsonl", io.BytesIO("\n".join(lines).encode())), purpose="batch")


def create(sdk, file):
    return sdk.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")


def ended(sdk, batch):
    return until(lambda: (found := sdk.batches.retrieve(batch.id)).status in ("completed", "cancelled") and found, 60)


def held_by_item(gateway, file):
    return gateway.rows(f"SELECT sum(held) FROM job_items WHERE job = '{file.id}'")[0][0] / 1e9


def test_settled_by_item_and_charged_once_however_often_it_is_polled(own_gateway):
    gateway = own_gateway()
    sdk = client(gateway)
    batch = create(sdk, upload(sdk, 40))
    ended(sdk, batch)
    # 10 tokens in at $0.0005 and 10 out at $0.001 each.
    truth = sum(item["input_tokens"] * 500_000 + item["output_tokens"] * 1_000_000
                for found in gateway.batches() for item in found["items"])
    charged = "SELECT count(*), sum(charge), min(origin), max(origin) FROM requests"
    assert until(lambda: gateway.rows(charged)[0][0] == 40)
    assert gateway.rows(charged) == [(40, truth, "batch", "batch")]
    assert gateway.rows("SELECT DISTINCT tier, usage_source FROM attempts") == [("batch", "reported")]
    assert gateway.rows("SELECT DISTINCT org, team, key FROM requests") == [("acme", "one", "tests")]
    for _ in range(300):
        sdk.batches.retrieve(batch.id)
    assert gateway.rows(charged) == [(40, truth, "batch", "batch")]
    assert until(lambda: gateway.rows("SELECT count(*) FROM leases WHERE node LIKE 'job/%'") == [(0,)])
    assert gateway.rows("SELECT sum(spent) FROM budget_windows") == [(truth,)]
    assert gateway.rows("SELECT sum(saved) FROM job_items") == [(truth,)], "as a batch it costs half"


def test_a_job_that_the_budget_does_not_pay_for_is_refused_before_anything_is_sent(own_gateway):
    gateway = own_gateway(budget="0.6")
    sdk = client(gateway)
    file = upload(sdk, 1000)
    # The budget pays for 600 of the 1,000 if an item is held at a thousandth of a dollar: whatever it is, the share is known.
    pays = int(0.6 / held_by_item(gateway, file) * 1000)
    assert 0 < pays < 1000
    with pytest.raises(openai.RateLimitError, match=f"pays for {pays} of the job"):
        create(sdk, file)
    assert gateway.batches() == [] and gateway.rows("SELECT sum(spent), sum(leased) FROM budget_windows")[0][0] == 0
    assert gateway.rows("SELECT count(*) FROM leases WHERE node LIKE 'job/%'") == [(0,)]


def test_a_job_is_trimmed_to_what_the_budget_pays_for(own_gateway):
    """A job of 1,000 items whose budget pays for 600."""
    probe = own_gateway()
    file = upload(client(probe), 1000)
    first = probe.rows(f"SELECT sum(held) FROM job_items WHERE job = '{file.id}' AND number <= 600")[0][0]
    gateway = own_gateway(budget=f"{first / 1e9:.9f}", over_budget="trim")
    sdk = client(gateway)
    done = ended(sdk, create(sdk, upload(sdk, 1000)))
    assert (done.request_counts.completed, done.request_counts.failed) == (600, 400)
    lost = [json.loads(line) for line in sdk.files.content(done.error_file_id).text.splitlines()]
    assert len(lost) == 400 and {line["error"]["code"] for line in lost} == {"budget_exceeded"}
    spent, limit = gateway.rows("SELECT spent, amount FROM budget_windows")[0]
    assert 0 < spent <= limit
    assert sum(len(found["items"]) for found in gateway.batches()) == 600
