"""Endpoints beyond chat: embeddings, completions and responses, one by one, in batches and as jobs."""
import io
import json
import uuid

import openai
import pytest
from batch_stack import KEY
from live import BIN, MODEL, Process
from waiting import until

# A batch of it is done in 0.3 s; 11 tokens in, 7 out. $1000 and $2000 a million tokens, half of it as a batch.
PLAIN = "fake-batch300-n7-in11"
EXPIRING = "fake-bexpires-batch300-bpart50-n7-in11"
# What of an item is charged, nano-dollars a batch.
PRICES = {"/v1/embeddings": 11 * 500_000, "/v1/completions": 11 * 500_000 + 7 * 1_000_000,
          "/v1/responses": 11 * 500_000 + 7 * 1_000_000}


@pytest.fixture
def client(gateway):
    return openai.OpenAI(base_url=gateway.url + "/v1", api_key=KEY, max_retries=0)


def line(endpoint, model=PLAIN, **more):
    content = {"/v1/completions": "prompt"}.get(endpoint, "input")
    body = {"model": model, content: uuid.uuid4().hex} | more
    return {"custom_id": uuid.uuid4().hex, "method": "POST", "url": endpoint, "body": body}


def upload(client, lines):
    text = "\n".join(map(json.dumps, lines)).encode()
    return client.files.create(file=("r.jsonl", io.BytesIO(text)), purpose="batch")


def run(client, lines, endpoint, window="24h"):
    file = upload(client, lines)
    assert json.loads(client.files.content(file.id).text.splitlines()[0])["url"] == endpoint
    batch = client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window=window)
    assert batch.endpoint == endpoint
    done = until(lambda: (found := client.batches.retrieve(batch.id)).status == "completed" and found, 90)
    out = client.files.content(done.output_file_id).text.splitlines()
    return batch.id, {read["custom_id"]: read["response"]["body"] for read in map(json.loads, out)}


def text_of(endpoint, body):
    if endpoint == "/v1/embeddings":
        return [one["embedding"] for one in body["data"]]
    return body["choices"][0]["text"] if endpoint == "/v1/completions" else body["output"][0]["content"][0]["text"]


@pytest.mark.parametrize("endpoint", PRICES)
def test_a_batch_of_them_is_one_at_the_provider_and_priced_by_item(client, gateway, endpoint):
    lines = [line(endpoint) for _ in range(4)]
    batch, answers = run(client, lines, endpoint)
    assert sorted(answers) == sorted(one["custom_id"] for one in lines)
    texts = {str(text_of(endpoint, body)) for body in answers.values()}
    assert texts == ({"[[0, 0.5, -0.25]]"} if endpoint == "/v1/embeddings" else {"tok0 tok1 tok2 tok3 tok4 tok5 tok6 "})
    asked = {one["body"].get("input") or one["body"]["prompt"] for one in lines}
    given = [found for found in gateway.batches() if asked & {item["text"] for item in found["items"]}]
    assert [found["endpoint"] for found in given] == [endpoint]
    items = gateway.rows(f"SELECT state, way, charge, saved, count(*) FROM job_items WHERE job = '{batch}' GROUP BY 1, 2, 3, 4")
    assert items == [("succeeded", "batch", PRICES[endpoint], PRICES[endpoint], 4)], "its own usage at half price"
    surface = endpoint.removeprefix("/v1/")
    billed = f"SELECT origin, sum(charge) FROM requests WHERE surface = '{surface}' AND origin = 'batch' GROUP BY 1"
    assert until(lambda: gateway.rows(billed))[0][1] >= 4 * PRICES[endpoint]


def test_what_their_batch_does_not_answer_is_rescued(client, gateway):
    endpoint = "/v1/embeddings"
    batch, answers = run(client, [line(endpoint, EXPIRING) for _ in range(4)], endpoint, "15s")
    assert len(answers) == 4
    ways = dict(gateway.rows(f"SELECT state, count(*) FROM job_items WHERE job = '{batch}' GROUP BY 1"))
    assert ways.get("rescued", 0) > 0 and set(ways) <= {"succeeded", "rescued"} and sum(ways.values()) == 4
    rescued = gateway.rows(f"SELECT DISTINCT charge FROM job_items WHERE job = '{batch}' AND state = 'rescued'")
    assert rescued == [(2 * PRICES[endpoint],)], "at the usual price"


def test_they_are_served_at_once_too(client, gateway):
    embedded = client.embeddings.create(model=PLAIN, input=["one", "two"])
    assert [one.embedding for one in embedded.data] == [[0, 0.5, -0.25], [1, 0.5, -0.25]]
    assert client.completions.create(model=PLAIN, prompt="x", max_tokens=3).choices[0].text == "tok0 tok1 tok2 "
    assert client.responses.create(model=PLAIN, input="x").output_text.startswith("tok0 tok1")
    charged = "SELECT surface, charge FROM requests WHERE origin = 'live' AND surface IN ('embeddings', 'completions', 'responses')"
    expected = [("completions", 17_000_000), ("embeddings", 11_000_000), ("responses", 25_000_000)]
    assert until(lambda: len(found := gateway.rows(charged)) >= 3 and sorted(found)) == expected


def test_a_job_of_one(client, gateway):
    import urllib.request
    body = {"endpoint": "/v1/embeddings", "body": {"model": PLAIN, "input": "x"}, "completion_window": "1h"}
    request = urllib.request.Request(gateway.url + "/v1/jobs", data=json.dumps(body).encode(), headers={"authorization": f"Bearer {KEY}"})
    job = json.load(urllib.request.urlopen(request))
    request = urllib.request.Request(gateway.url + f"/v1/jobs/{job['id']}", headers={"authorization": f"Bearer {KEY}", "prefer": "wait=30"})
    done = json.load(urllib.request.urlopen(request))
    assert done["status"] == "succeeded" and done["result"]["body"]["data"][0]["embedding"] == [0, 0.5, -0.25]


@pytest.mark.parametrize("lines, problem", [
    ([line("/v1/embeddings"), line("/v1/responses")], "line 2.*one endpoint"),
    ([line("/v1/embeddings"), line("/v1/images/generations")], "line 2.*/v1/embeddings, /v1/completions and /v1/responses can"),
    ([line("/v1/embeddings"), line("/v1/embeddings", "fake-batch300-x1")], "line 2.*anthropic and has no /v1/embeddings"),
    ([line("/v1/responses"), line("/v1/responses", stream=True)], "line 2.*stream. makes no sense"),
    ([line("/v1/embeddings", input=["x"] * 30_000), line("/v1/embeddings", input=["x"] * 30_000)], "line 2.*50000 texts"),
])
def test_mistakes_are_told_by_line(client, lines, problem):
    with pytest.raises(openai.BadRequestError, match=problem):
        upload(client, lines)


def test_the_endpoint_of_a_batch_is_that_of_its_lines(client):
    file = upload(client, [line("/v1/embeddings")])
    with pytest.raises(openai.BadRequestError, match="are for /v1/embeddings, not for /v1/responses"):
        client.batches.create(input_file_id=file.id, endpoint="/v1/responses", completion_window="24h")


def test_our_own_engine_serves_responses(own_gateway):
    assert MODEL.exists(), "the model is missing: run deploy/fetch-model.sh"
    process = Process(BIN / "local-backend", "serve", "--model", MODEL, "--listen", "127.0.0.1:0")
    try:
        gateway = own_gateway(local=process.address("listening on "))
        client = openai.OpenAI(base_url=gateway.url + "/v1", api_key=KEY, max_retries=0)
        model = "smollm2-135m-instruct"
        batch, answers = run(client, [line("/v1/responses", model, max_output_tokens=8) for _ in range(3)], "/v1/responses")
        assert all(body["usage"]["output_tokens"] > 0 for body in answers.values()) and len(answers) == 3
        assert gateway.rows(f"SELECT DISTINCT way, state FROM job_items WHERE job = '{batch}'") == [("local", "succeeded")]
    finally:
        process.stop()
