"""OpenAI's own batch flow, step by step, with the official SDK."""
import io
import json
import uuid

from waiting import until


def lines(model, count, **body):
    """Requests for chat completions, none of which was made before."""
    name = uuid.uuid4().hex
    return [{
        "custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions",
        "body": {"model": model, "messages": [{"role": "user", "content": f"{name} {number}"}]} | body,
    } for number in range(count)]


def upload(client, requests):
    text = "\n".join(map(json.dumps, requests)).encode()
    return client.files.create(file=("requests.jsonl", io.BytesIO(text)), purpose="batch")


def begin(client, requests, window="24h"):
    return client.batches.create(
        input_file_id=upload(client, requests).id, endpoint="/v1/chat/completions", completion_window=window,
        metadata={"of": "test"})


def ended(client, batch, seconds=60):
    over = ("completed", "expired", "cancelled", "failed")
    return until(lambda: (found := client.batches.retrieve(batch.id)).status in over and found, seconds)
