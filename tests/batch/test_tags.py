"""What a request is declared to be goes with it when it becomes a job: to budgets, to the policy, to what is kept of it."""
import io
import json
import urllib.error
import urllib.request
import uuid

import anthropic
import openai
import pytest
from batch_stack import KEY, Gateway
from waiting import until

# A budget of its own for what is tagged `env: small`.
SETTINGS = {
    "budgets": ', {limit_dollars: "0.05", per: total, tags: {env: small}}',
    "more": "store: {decisions: true}\nlabel_headers: [X-Customer]",
}
# A batch of it is done in 0.2 s; 10 tokens in and 10 out, at $0.0005 and $0.001 each; at most 100, which is held.
MODEL = "fake-batch200-n10-in10"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    gateway = Gateway(tmp_path_factory.mktemp("tags"), **SETTINGS)
    yield gateway
    gateway.stop()


def call(gateway, path, body=None, **headers):
    """Status and answer. Underscores in the names of headers stand for hyphens, but for those in the names of tags."""
    request = urllib.request.Request(gateway.url + path, data=json.dumps(body).encode() if body else None)
    request.add_header("authorization", f"Bearer {KEY}")
    for name, value in headers.items():
        request.add_header(name if "-" in name else name.replace("_", "-"), value)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def ask(model=MODEL, **more):
    return {"model": model, "messages": [{"role": "user", "content": uuid.uuid4().hex}]} | more


def tags(**tags):
    return {f"x-tollgate-tag-{name}": value for name, value in tags.items()}


def labels(gateway, job):
    return dict(json.loads(gateway.rows(f"SELECT labels FROM jobs WHERE id = '{job}'")[0][0]))


def decided(gateway, job):
    """The labels in the decisions on a job's items, once it has ended."""
    until(lambda: gateway.rows(f"SELECT ended_us > 0 FROM jobs WHERE id = '{job}'") == [(1,)])
    requests = [row[0] for row in gateway.rows(f"SELECT request FROM job_items WHERE job = '{job}'")]
    ids = ", ".join(f"x'{uuid.UUID(one).hex}'" for one in requests)
    found = until(lambda: len(rows := gateway.rows(f"SELECT decision FROM decisions WHERE request IN ({ids})")) == len(requests) and rows)
    return [dict(map(tuple, json.loads(row[0])["facts"]["labels"])) for row in found]


def test_a_deferred_request_keeps_its_tags(gateway):
    said = tags(env="prod", feature="search") | {"x-customer": "gold"}
    body = ask(metadata={"task": "sum", "x-customer": "nobody"})
    told = {"env": "prod", "feature": "search", "x-customer": "gold", "task": "sum"}
    status, job = call(gateway, "/v1/chat/completions", body, x_tollgate_workflow="nightly", x_tollgate_defer="accept", **said)
    assert status == 202 and labels(gateway, job["id"]) == told
    assert decided(gateway, job["id"]) == [told], "kept with its decision"
    # The same as for one that is answered at once.
    before = {row[0] for row in gateway.rows("SELECT request FROM decisions")}
    assert call(gateway, "/v1/chat/completions", body, x_tollgate_workflow="nightly", x_tollgate_defer="never", **said)[0] == 200
    row = until(lambda: [row for row in gateway.rows("SELECT request, decision FROM decisions") if row[0] not in before])[0]
    assert dict(map(tuple, json.loads(row[1])["facts"]["labels"])) == told
    _, shown = call(gateway, f"/v1/jobs/{job['id']}")
    assert shown["status"] == "succeeded"
    admin = json.load(urllib.request.urlopen(f"{gateway.admin}/admin/v1/jobs/{job['id']}"))
    assert admin["labels"] == told


@pytest.mark.parametrize("model, way", [(MODEL, "batch"), ("smollm2-135m-instruct", "local")])
def test_a_job_has_the_labels_of_its_head_its_metadata_and_its_body(gateway, model, way):
    body = {"endpoint": "/v1/chat/completions", "body": ask(model, metadata={"task": "sum"}),
            "metadata": {"Run": "7", "count": 3, "x-customer": "nobody"}}
    status, job = call(gateway, "/v1/jobs", body, **tags(env="prod"))
    assert status == 202
    told = {"env": "prod", "run": "7", "task": "sum"}
    assert labels(gateway, job["id"]) == told and decided(gateway, job["id"]) == [told]
    assert gateway.rows(f"SELECT way FROM job_items WHERE job = '{job['id']}'") == [(way,)]


def lines(model, count):
    return "\n".join(json.dumps({"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": ask(model, max_tokens=10)})
                     for number in range(count)).encode()


def batch_of(gateway, model=MODEL, upload=(), create=(), count=2, **more):
    sdk = openai.OpenAI(base_url=gateway.url + "/v1", api_key=KEY, max_retries=0)
    file = sdk.files.create(file=("r.jsonl", io.BytesIO(lines(model, count))), purpose="batch", extra_headers=tags(**dict(upload)))
    return sdk.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="1h",
                              extra_headers=tags(**dict(create)), **more)


def test_a_batch_has_the_labels_of_its_file_its_head_and_its_metadata(gateway):
    batch = batch_of(gateway, upload={"env": "prod"}, create={"feature": "search"}, metadata={"of": "test"})
    assert labels(gateway, batch.id) == {"env": "prod", "feature": "search", "of": "test"}
    assert decided(gateway, batch.id) == [{"env": "prod"}] * 2, "what was known when its items were ruled on"


def test_message_batches_have_them_too(gateway):
    sdk = anthropic.Anthropic(base_url=gateway.url, api_key=KEY, max_retries=0)
    params = {"model": MODEL, "max_tokens": 10, "messages": [{"role": "user", "content": uuid.uuid4().hex}]}
    batch = sdk.messages.batches.create(requests=[{"custom_id": "one", "params": params}], extra_headers=tags(env="prod"))
    assert labels(gateway, batch.id) == {"env": "prod"} and decided(gateway, batch.id) == [{"env": "prod"}]


def test_a_budget_by_tag_counts_jobs(gateway):
    spent = "SELECT sum(spent) FROM budget_windows WHERE budget LIKE '%env=small%'"
    status, told = call(gateway, "/v1/jobs", {"body": ask(max_tokens=100)}, **tags(env="small"))
    assert status == 429 and told["error"]["code"] == "budget_exceeded" and "pays for 0" in told["error"]["message"]
    assert call(gateway, "/v1/jobs", {"body": ask(max_tokens=100)}, **tags(env="large"))[0] == 202
    assert call(gateway, "/v1/jobs", {"body": ask(max_tokens=10)}, **tags(env="small"))[0] == 202
    # What it used; nothing stays held for it.
    assert until(lambda: gateway.rows(spent) == [(10 * 500_000 + 10 * 1_000_000,)])
    assert until(lambda: gateway.rows("SELECT count(*) FROM leases WHERE node LIKE 'job/%'") == [(0,)])
    # A batch is held by what it was declared to be when it was made of its file.
    with pytest.raises(openai.RateLimitError, match="pays for"):
        batch_of(gateway, count=4, create={"env": "small"})


def test_data_that_a_provider_may_not_read_does_not_reach_it_by_a_batch(gateway):
    # Its own file said nothing of it, and so was ruled to wait for a batch at a provider that may not read such data.
    batch = batch_of(gateway, "auto", create={"data_class": "secret"})
    until(lambda: gateway.rows(f"SELECT ended_us > 0 FROM jobs WHERE id = '{batch.id}'") == [(1,)])
    assert gateway.rows(f"SELECT DISTINCT state, way, problem FROM job_items WHERE job = '{batch.id}'") == [("rescued", "standard", "")]
    served = "SELECT a.deployment FROM attempts a JOIN decisions d ON d.request = a.request WHERE d.decision LIKE '%secret%'"
    assert until(lambda: gateway.rows(served)) == [("local",)] * 2
    # Who says so at once goes where it may be read.
    _, job = call(gateway, "/v1/jobs", {"body": ask("auto")}, **tags(data_class="secret"))
    assert call(gateway, f"/v1/jobs/{job['id']}", prefer="wait=30")[1]["way"] == "local"
    # And nothing is taken that nobody may read.
    status, told = call(gateway, "/v1/jobs", {"body": ask()}, **tags(data_class="secret"))
    assert status in (400, 403, 404) and "data" in told["error"]["message"]
