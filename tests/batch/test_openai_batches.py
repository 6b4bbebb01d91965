"""OpenAI's own batch flow with the official SDK, only `base_url` and key changed."""
import json

import openai
import pytest
from openai_flow import begin, ended, lines, upload
from waiting import until


@pytest.fixture
def client(gateway, key):
    return openai.OpenAI(base_url=gateway.url + "/v1", api_key=key, max_retries=0)


def read(client, file):
    return [json.loads(line) for line in client.files.content(file).text.splitlines()]


def given(gateway, requests):
    """How often the fake was given each of these requests in a batch, and in how many batches."""
    texts = {request["body"]["messages"][0]["content"]: 0 for request in requests}
    batches = 0
    for batch in gateway.batches():
        mine = [item["text"] for item in batch["items"] if item["text"] in texts]
        batches += bool(mine)
        for text in mine:
            texts[text] += 1
    return texts, batches


def test_the_whole_flow(client, gateway):
    requests = lines("fake-batch300", 25)
    file = upload(client, requests)
    assert (file.object, file.purpose, file.status) == ("file", "batch", "processed")
    assert [json.loads(line) for line in client.files.content(file.id).text.splitlines()] == requests
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"of": "test"})
    assert batch.object == "batch" and batch.status in ("validating", "in_progress")
    assert batch.request_counts.total == 25 and batch.metadata == {"of": "test"}
    done = ended(client, batch)
    assert done.status == "completed" and done.error_file_id is None
    assert (done.request_counts.completed, done.request_counts.failed) == (25, 0)
    out = read(client, done.output_file_id)
    assert sorted(line["custom_id"] for line in out) == sorted(request["custom_id"] for request in requests)
    for line in out:
        assert line["response"]["status_code"] == 200 and line["error"] is None
        assert line["response"]["body"]["choices"][0]["message"]["content"].startswith("tok0")
    texts, batches = given(gateway, requests)
    assert set(texts.values()) == {1} and batches == 1
    assert batch.id in [found.id for found in client.batches.list(limit=100)]
    assert file.id in [found.id for found in client.files.list()]
    assert client.files.delete(file.id).deleted


def test_two_batches_share_one_at_the_provider(client, gateway):
    one, two = lines("fake-batch900-n6", 3), lines("fake-batch900-n6", 4)
    batches = [begin(client, one), begin(client, two)]
    for batch, requests in zip(batches, (one, two)):
        done = ended(client, batch)
        assert {line["custom_id"] for line in read(client, done.output_file_id)} == {r["custom_id"] for r in requests}
    assert given(gateway, one + two)[1] == 1


def test_what_expires_is_rescued(client, gateway):
    requests = lines("fake-bexpires-batch300-bpart50", 10)
    done = ended(client, begin(client, requests, "1m"), 90)
    assert done.status == "completed" and done.request_counts.completed == 10
    texts, _ = given(gateway, requests)
    assert set(texts.values()) >= {1}
    called = [entry for entry in gateway.called() if any(text in (entry["body"] or "") for text in texts)]
    assert 0 < len(called) < 10, "what the batch had answered was not asked for again"
    assert gateway.rows(f"SELECT count(*) FROM job_items WHERE job = '{done.id}' AND state = 'rescued'") == [(len(called),)]


def test_a_batch_that_the_provider_fails_is_rescued(client, gateway):
    done = ended(client, begin(client, lines("fake-bfails", 4)))
    assert done.status == "completed"
    assert gateway.rows(f"SELECT DISTINCT state, rescue FROM job_items WHERE job = '{done.id}'") == [("rescued", 1)]


def test_a_batch_that_never_ends_is_given_up_in_time(client, gateway):
    requests = lines("fake-bnever-batch400-bpart50", 6)
    batch = begin(client, requests, "1m")
    done = ended(client, batch, 90)
    assert done.status == "completed" and done.completed_at <= batch.expires_at
    states = dict(gateway.rows(f"SELECT state, count(*) FROM job_items WHERE job = '{done.id}' GROUP BY state"))
    assert states.get("rescued", 0) > 0 and sum(states.values()) == 6


def test_errors_of_items_go_to_the_error_file(client):
    done = ended(client, begin(client, lines("fake-batch300-400", 3)))
    assert done.status == "completed" and done.output_file_id is None
    assert done.request_counts.failed == 3
    for line in read(client, done.error_file_id):
        assert line["response"]["status_code"] == 400 and "scripted" in line["response"]["body"]["error"]["message"]


def test_errors_that_may_mend_go_into_the_next_batch(client, gateway):
    requests = lines("fake-batch300-failfirst1", 4)
    done = ended(client, begin(client, requests))
    assert done.request_counts.completed == 4
    assert set(given(gateway, requests)[0].values()) == {2}


def test_cancel_keeps_what_finished_and_reaches_the_provider(client, gateway):
    requests = lines("fake-bnever-batch400-bpart50", 8)
    batch = begin(client, requests)
    texts = {request["body"]["messages"][0]["content"] for request in requests}
    until(lambda: any(item["text"] in texts for found in gateway.batches() for item in found["items"]))
    import time
    time.sleep(0.5)
    assert client.batches.cancel(batch.id).status == "cancelling"
    done = ended(client, batch)
    assert done.status == "cancelled" and 0 < done.request_counts.completed < 8
    phases = {found["phase"] for found in gateway.batches() for item in found["items"] if item["text"] in texts}
    assert phases == {"cancelled"}
    out, lost = read(client, done.output_file_id), read(client, done.error_file_id)
    assert len(out) + len(lost) == 8 and {line["error"]["code"] for line in lost} == {"batch_cancelled"}


@pytest.mark.parametrize("requests, problem", [
    ([{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "fake-batch300"}}], "line 1"),
    (lines("fake-batch300", 1) + lines("nobody-s-model", 1), "line 2"),
    (lines("fake-batch300", 1) * 2, "used twice"),
    ([{**lines("fake-batch300", 1)[0], "url": "/v1/moderations"}], "line 1.*cannot be batched"),
    (lines("fake-batch300", 1, stream=True), "stream"),
])
def test_mistakes_are_told_by_line(client, requests, problem):
    with pytest.raises(openai.BadRequestError, match=problem):
        upload(client, requests)


def test_nobody_else_s_batches(client, gateway):
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("batch_of_nobody")
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=gateway.url + "/v1", api_key="tg_wrong", max_retries=0).batches.list()


def test_another_dialect_answers_in_the_caller_s(client, gateway):
    """An OpenAI batch whose items an Anthropic provider's batch answers."""
    done = ended(client, begin(client, lines("fake-batch300-x1", 5)))
    assert done.request_counts.completed == 5
    for line in read(client, done.output_file_id):
        body = line["response"]["body"]
        assert body["object"] == "chat.completion" and body["usage"]["completion_tokens"] == 8
