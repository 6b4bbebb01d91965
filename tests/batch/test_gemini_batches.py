"""Gemini's batches as a backend: OpenAI's and Anthropic's batch flows in front of it, and jobs. The fake's money is the truth."""
import json
import time
import urllib.request
import uuid

import anthropic
import openai
import pytest
from batch_stack import KEY
from google import genai
from google.genai import types
from openai_flow import begin, ended, lines, upload
from waiting import until

# 11 tokens in, 3 of thinking and 5 of text.
PLAIN = "fake-batch300-n5-think3-in11-x4"
NEVER = "fake-bnever-batch400-bpart50-in11-x4"
# Nano-dollars a token, in a batch.
IN, OUT = 500_000, 1_000_000
FUNCTION = {"type": "function", "function": {
    "name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}


def client_of(gateway):
    return openai.OpenAI(base_url=gateway.url + "/v1", api_key=KEY, max_retries=0)


def google_of(gateway):
    """Google's own client at the fake: what it can use is in Google's form."""
    return genai.Client(api_key="k", http_options=types.HttpOptions(base_url=gateway.fake, api_version="v1beta"))


@pytest.fixture
def client(gateway):
    return client_of(gateway)


def read(client, file):
    return {line["custom_id"]: line["response"] for line in map(json.loads, client.files.content(file).text.splitlines())}


def given(gateway, requests):
    """The fake's batches that have these requests, and its items of them."""
    texts = {request["body"]["messages"][-1]["content"] for request in requests}
    batches = [found for found in gateway.batches() if any(item["text"] in texts for item in found["items"])]
    return batches, [item for found in batches for item in found["items"] if item["text"] in texts]


def billed(items):
    return sum(item["input_tokens"] * IN + item["output_tokens"] * OUT for item in items if item["fate"] == "succeeded")


def states(gateway, batch):
    return dict(gateway.rows(f"SELECT state, count(*) FROM job_items WHERE job = '{batch.id}' GROUP BY 1"))


# In the call that makes the batch, and by file.
@pytest.mark.parametrize("padding", [0, 400_000])
def test_the_whole_flow(own_gateway, padding):
    gateway = own_gateway(budget="10000")
    client, google = client_of(gateway), google_of(gateway)
    brief = {"role": "system", "content": "brief" + "x" * padding}
    requests = lines(PLAIN, 7, reasoning_effort="low", temperature=0.5)
    for request in requests:
        request["body"]["messages"].insert(0, brief)
    batch = ended(client, begin(client, requests))
    assert (batch.status, batch.request_counts.completed, batch.error_file_id) == ("completed", 7, None)
    out = read(client, batch.output_file_id)
    assert set(out) == {request["custom_id"] for request in requests}
    for response in out.values():
        body = response["body"]
        assert body["object"] == "chat.completion"
        message = body["choices"][0]["message"]
        assert message["content"] == "tok0 tok1 tok2 tok3 tok4 " and message["reasoning_content"].startswith("think0")
        assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (11, 8), "thinking is paid too"
        assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] == 3
    batches, items = given(gateway, requests)
    assert len(batches) == 1 and len(items) == 7, "each was given once"
    assert bool(batches[0]["input_file"]) == bool(padding)
    charged = f"SELECT sum(charge), sum(saved) FROM job_items WHERE job = '{batch.id}'"
    assert gateway.rows(charged) == [(billed(items), billed(items))] and billed(items) == 7 * (11 * IN + 8 * OUT)
    split = f"SELECT DISTINCT input, output, reasoning, usage_source, tier FROM attempts WHERE model = '{PLAIN}' AND tier = 'batch'"
    assert until(lambda: gateway.rows(split)) == [(11, 5, 3, "reported", "batch")]
    # The batch is called as the pack, so that it is found again.
    [pack] = gateway.rows(f"SELECT DISTINCT pack FROM job_items WHERE job = '{batch.id}'")
    found = [job for job in google.batches.list(config={"page_size": 2}) if job.display_name == pack[0]]
    assert [job.state for job in found] == [types.JobState.JOB_STATE_SUCCEEDED]


def test_the_fake_is_what_google_s_client_takes_for_gemini(gateway, tmp_path):
    """Upload, make, ask, list, cancel and download, by the official client."""
    google = google_of(gateway)
    contents = {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}
    path = tmp_path / "requests.jsonl"
    path.write_text("".join(json.dumps({"key": f"k{number}", "request": contents}) + "\n" for number in range(3)))
    file = google.files.upload(file=path, config=types.UploadFileConfig(mime_type="application/jsonl"))
    made = google.batches.create(model="fake-batch300", src=file.name, config={"display_name": "ours"})
    assert made.state == types.JobState.JOB_STATE_PENDING
    done = until(lambda: (job := google.batches.get(name=made.name)).done and job)
    assert done.state == types.JobState.JOB_STATE_SUCCEEDED
    out = [json.loads(line) for line in google.files.download(file=done.dest.file_name).splitlines()]
    assert [line["key"] for line in out] == ["k2", "k1", "k0"]
    answer = types.GenerateContentResponse.model_validate(out[0]["response"])
    assert answer.text.startswith("tok0") and answer.usage_metadata.candidates_token_count == 8
    inline = [{"contents": "hi", "metadata": {"key": "only"}}]
    made = google.batches.create(model="fake-batch300", src=inline, config={"display_name": "inline"})
    done = until(lambda: (job := google.batches.get(name=made.name)).done and job)
    [answer] = done.dest.inlined_responses
    assert answer.response.text.startswith("tok0") and answer.metadata == {"key": "only"}
    never = google.batches.create(model="fake-bnever-batch400", src=inline, config={"display_name": "never"})
    google.batches.cancel(name=never.name)
    assert until(lambda: google.batches.get(name=never.name).state == types.JobState.JOB_STATE_CANCELLED)
    assert {"ours", "inline", "never"} <= {job.display_name for job in google.batches.list(config={"page_size": 1})}


def test_tools_and_formats_go_there_and_back(client):
    said = [{"role": "user", "content": "weather?"}]
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{\"city\":\"Bonn\"}"}}
    loop = said + [{"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c1", "content": "sun"}]
    model = "fake-batch300-tools-x4"
    requests = lines(model, 1, tools=[FUNCTION], messages=said)
    requests += [{**requests[0], "custom_id": "after", "body": {"model": model, "tools": [FUNCTION], "messages": loop}}]
    schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}
    requests += [{**requests[0], "custom_id": "shaped", "body": {"model": model, "messages": said, "response_format": schema, "max_tokens": 3}}]
    out = read(client, ended(client, begin(client, requests)).output_file_id)
    [asked] = out["r0"]["body"]["choices"][0]["message"]["tool_calls"]
    assert (asked["function"]["name"], json.loads(asked["function"]["arguments"])) == ("weather", {"city": "Paris \"75\""})
    assert out["r0"]["body"]["choices"][0]["finish_reason"] == "tool_calls"
    assert out["after"]["body"]["choices"][0]["message"]["content"].startswith("tok0")
    assert out["shaped"]["body"]["choices"][0]["finish_reason"] == "length"


def test_errors_of_items_and_those_that_may_mend(client, gateway):
    batch = ended(client, begin(client, lines("fake-batch300-400-x4", 3)))
    assert (batch.output_file_id, batch.request_counts.failed) == (None, 3)
    for response in read(client, batch.error_file_id).values():
        assert response["status_code"] == 400 and "scripted" in response["body"]["error"]["message"]
    requests = lines("fake-batch300-failfirst1-x4", 4)
    batch = ended(client, begin(client, requests))
    batches, items = given(gateway, requests)
    assert (batch.request_counts.completed, len(batches), len(items)) == (4, 2, 8)
    assert gateway.rows(f"SELECT sum(charge) FROM job_items WHERE job = '{batch.id}'") == [(billed(items),)]


def test_cancel_keeps_what_finished_and_bills_only_that(client, gateway):
    requests = lines(NEVER, 8)
    batch = begin(client, requests)
    until(lambda: given(gateway, requests)[0])
    time.sleep(0.5)
    assert client.batches.cancel(batch.id).status == "cancelling"
    done = ended(client, batch)
    assert done.status == "cancelled" and 0 < done.request_counts.completed < 8
    batches, items = given(gateway, requests)
    assert {found["phase"] for found in batches} == {"cancelled"}
    assert gateway.rows(f"SELECT sum(charge) FROM job_items WHERE job = '{batch.id}'") == [(billed(items),)]
    assert len(read(client, done.output_file_id)) == done.request_counts.completed


@pytest.mark.parametrize("model, window", [("fake-bexpires-batch300-in11-x4", "15s"), ("fake-bfails-x4", "24h")])
def test_what_expires_or_fails_is_rescued_in_time(client, gateway, model, window):
    requests = lines(model, 4)
    batch = begin(client, requests, window)
    done = ended(client, batch, 90)
    assert (done.status, done.request_counts.completed) == ("completed", 4) and done.completed_at <= batch.expires_at
    assert states(gateway, batch) == {"rescued": 4}
    assert billed(given(gateway, requests)[1]) == 0, "what has expired is not billed"
    texts = {request["body"]["messages"][0]["content"] for request in requests}
    called = [entry for entry in gateway.called() if any(text in (entry["body"] or "") for text in texts)]
    assert {entry["path"] for entry in called} == {"/v1beta/openai/chat/completions"} and len(called) == 4


def test_anthropic_s_flow_in_front_of_it(gateway):
    client = anthropic.Anthropic(base_url=gateway.url, api_key=KEY, max_retries=0)
    asked = [{"custom_id": f"r{number}", "params": {
        "model": PLAIN, "max_tokens": 20, "system": "brief", "messages": [{"role": "user", "content": uuid.uuid4().hex}],
    }} for number in range(5)]
    batch = client.messages.batches.create(requests=asked)
    until(lambda: client.messages.batches.retrieve(batch.id).processing_status == "ended", 60)
    results = {result.custom_id: result.result for result in client.messages.batches.results(batch.id)}
    assert set(results) == {request["custom_id"] for request in asked}
    for result in results.values():
        assert result.message.content[-1].text == "tok0 tok1 tok2 tok3 tok4 " and result.message.usage.output_tokens == 8
    assert gateway.rows(f"SELECT DISTINCT charge FROM job_items WHERE job = '{batch.id}'") == [(11 * IN + 8 * OUT,)]


def test_an_answer_that_does_not_say_what_it_used_is_counted(client, gateway):
    batch = ended(client, begin(client, lines("fake-batch300-nousage-x4", 2)))
    assert batch.request_counts.completed == 2
    assert gateway.rows(f"SELECT min(charge) > 0 FROM job_items WHERE job = '{batch.id}'") == [(1,)]


@pytest.mark.parametrize("more, way", [({}, "batch"), ({"logit_bias": {"5": 1}}, "standard")])
def test_a_job_goes_whichever_way_takes_it(gateway, more, way):
    body = {"endpoint": "/v1/chat/completions", "completion_window": "1h",
            "body": {"model": PLAIN, "messages": [{"role": "user", "content": uuid.uuid4().hex}]} | more}
    request = urllib.request.Request(gateway.url + "/v1/jobs", data=json.dumps(body).encode(), headers={"authorization": f"Bearer {KEY}"})
    job = json.load(urllib.request.urlopen(request))
    request = urllib.request.Request(gateway.url + f"/v1/jobs/{job['id']}", headers={"authorization": f"Bearer {KEY}", "prefer": "wait=30"})
    assert json.load(urllib.request.urlopen(request))["status"] == "succeeded"
    price = (11 * IN + 8 * OUT) * (1 if way == "batch" else 2)
    assert gateway.rows(f"SELECT way, charge FROM job_items WHERE job = '{job['id']}'") == [(way, price)]


PICTURE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://host/picture.png"}}]}]


@pytest.mark.parametrize("more, problem", [
    ({"logit_bias": {"5": 1}}, r"line 2: `logit_bias` cannot be put into a Gemini batch.*\(leave it out.*/v1/jobs"),
    ({"messages": PICTURE}, r"line 2: `messages\.content\.image_url`.*`data:` URLs"),
    ({"tools": [FUNCTION], "parallel_tool_calls": False}, "line 2: `parallel_tool_calls`"),
])
def test_what_cannot_be_said_there_is_told_by_line_at_the_upload(client, gateway, more, problem):
    before = len(gateway.batches())
    with pytest.raises(openai.BadRequestError, match=problem):
        upload(client, lines(PLAIN, 1) + [{**lines(PLAIN, 1, **more)[0], "custom_id": "second"}])
    assert len(gateway.batches()) == before
