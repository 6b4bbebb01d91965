"""Our own engine as the target of batches, with the real model: items run in its background class."""
import io
import json

import openai
import pytest
from batch_stack import KEY
from live import BIN, MODEL, Process
from waiting import until


@pytest.fixture
def engine():
    assert MODEL.exists(), "the model is missing: run deploy/fetch-model.sh"
    process = Process(BIN / "local-backend", "serve", "--model", MODEL, "--listen", "127.0.0.1:0")
    yield process.address("listening on ")
    process.stop()


def test_a_batch_is_answered_by_the_engine(own_gateway, engine):
    gateway = own_gateway(local=engine)
    sdk = openai.OpenAI(base_url=gateway.url + "/v1", api_key=KEY, max_retries=0)
    ask = [{"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": {
        "model": "smollm2-135m-instruct", "max_tokens": 12, "temperature": 0,
        "messages": [{"role": "user", "content": f"Count from {number}."}],
    }} for number in range(6)]
    file = sdk.files.create(file=("r.jsonl", io.BytesIO("\n".join(map(json.dumps, ask)).encode())), purpose="batch")
    batch = sdk.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    done = until(lambda: (found := sdk.batches.retrieve(batch.id)).status == "completed" and found, 120)
    assert done.request_counts.completed == 6
    lines = [json.loads(line) for line in sdk.files.content(done.output_file_id).text.splitlines()]
    assert all(line["response"]["body"]["usage"]["completion_tokens"] > 0 for line in lines)
    assert gateway.rows(f"SELECT DISTINCT way, state FROM job_items WHERE job = '{batch.id}'") == [("local", "succeeded")]
    # Rows are written a moment after the answer.
    written = "SELECT class, origin, count(*) FROM attempts a JOIN requests r ON r.id = a.request GROUP BY 1, 2"
    assert until(lambda: (found := gateway.rows(written)) and found[0][2] == 6 and found, 20) == [("local", "batch", 6)]
