"""Anthropic's own message batch flow with the official SDK, only `base_url` and key changed."""
import time
import uuid

import anthropic
import pytest
from waiting import until


@pytest.fixture
def client(gateway, key):
    return anthropic.Anthropic(base_url=gateway.url, api_key=key, max_retries=0)


def requests(model, count):
    name = uuid.uuid4().hex
    return [{"custom_id": f"r{number}", "params": {
        "model": model, "max_tokens": 20, "messages": [{"role": "user", "content": f"{name} {number}"}],
    }} for number in range(count)]


def ended(client, batch):
    def look():
        found = client.messages.batches.retrieve(batch.id)
        return found if found.processing_status == "ended" else None
    return until(look, 60)


@pytest.mark.parametrize("model", ["fake-batch300-x1", "fake-batch300"])
def test_the_whole_flow(client, gateway, model):
    """In front of Anthropic's batches, and of OpenAI's."""
    asked = requests(model, 12)
    batch = client.messages.batches.create(requests=asked)
    assert batch.type == "message_batch" and batch.processing_status == "in_progress"
    done = ended(client, batch)
    assert (done.request_counts.succeeded, done.request_counts.processing) == (12, 0)
    results = {result.custom_id: result.result for result in client.messages.batches.results(batch.id)}
    assert set(results) == {request["custom_id"] for request in asked}
    for result in results.values():
        assert result.type == "succeeded" and result.message.content[0].text.startswith("tok0")
        assert result.message.usage.output_tokens == 8
    assert batch.id in [found.id for found in client.messages.batches.list(limit=50)]
    texts = {request["params"]["messages"][0]["content"] for request in asked}
    given = [item["text"] for found in gateway.batches() for item in found["items"] if item["text"] in texts]
    assert sorted(given) == sorted(texts), "each was given once"
    assert client.messages.batches.delete(batch.id).type == "message_batch_deleted"
    with pytest.raises(anthropic.NotFoundError):
        client.messages.batches.retrieve(batch.id)


def test_errors_of_items(client):
    batch = client.messages.batches.create(requests=requests("fake-batch300-400-x1", 2))
    assert ended(client, batch).request_counts.errored == 2
    for result in client.messages.batches.results(batch.id):
        assert result.result.type == "errored" and "scripted" in result.result.error.error.message


def test_cancel_keeps_what_finished(client, gateway):
    asked = requests("fake-bnever-batch400-bpart50-x1", 6)
    batch = client.messages.batches.create(requests=asked)
    texts = {request["params"]["messages"][0]["content"] for request in asked}
    until(lambda: any(item["text"] in texts for found in gateway.batches() for item in found["items"]))
    time.sleep(0.5)
    assert client.messages.batches.cancel(batch.id).processing_status == "canceling"
    counts = ended(client, batch).request_counts
    assert counts.succeeded + counts.canceled == 6 and counts.succeeded > 0 and counts.canceled > 0
    kinds = [result.result.type for result in client.messages.batches.results(batch.id)]
    assert (kinds.count("succeeded"), kinds.count("canceled")) == (counts.succeeded, counts.canceled)


def test_mistakes_are_told_by_place(client):
    good = requests("fake-batch300-x1", 2)
    with pytest.raises(anthropic.BadRequestError, match="used twice"):
        client.messages.batches.create(requests=good + good[:1])
    with pytest.raises(anthropic.BadRequestError, match=r"requests\.2"):
        client.messages.batches.create(requests=good + [{"custom_id": "a b", "params": good[0]["params"]}])
