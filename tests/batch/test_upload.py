"""A file at the provider's own limits: memory stays small, and a mistake is told by its line."""
import io
import json
import os
import pathlib

import openai
import pytest
from batch_stack import KEY


def memory(gateway):
    """The most that the process has had resident, in bytes."""
    status = pathlib.Path(f"/proc/{gateway.gateway.child.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


def lines(count, bad=None, size=1500):
    for number in range(1, count + 1):
        if number == bad:
            yield b'{"custom_id": "x", "method": "POST", "url": "/v1/chat/completions", "body": {"model": '
        else:
            body = {"model": "fake-batch300", "max_tokens": 10, "messages": [{"role": "user", "content": f"{number} " + "w " * (size // 2)}]}
            yield json.dumps({"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}).encode()


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is read from /proc")
def test_50_000_lines_in_little_memory_and_a_bad_one_by_its_number(own_gateway):
    gateway = own_gateway()
    sdk = openai.OpenAI(base_url=gateway.url + "/v1", api_key=KEY, max_retries=0, timeout=300)
    text = b"\n".join(lines(50_000, bad=31_337))
    with pytest.raises(openai.BadRequestError, match="line 31337"):
        sdk.files.create(file=("r.jsonl", io.BytesIO(text)), purpose="batch")
    text = b"\n".join(lines(50_000))
    assert len(text) > 75_000_000
    file = sdk.files.create(file=("r.jsonl", io.BytesIO(text)), purpose="batch")
    assert gateway.rows(f"SELECT total FROM jobs WHERE id = '{file.id}'") == [(50_000,)]
    assert memory(gateway) < 200e6, f"{memory(gateway) / 1e6:.0f} MB"
    with pytest.raises(openai.BadRequestError, match="at most 50000"):
        sdk.files.create(file=("r.jsonl", io.BytesIO(b"\n".join(lines(50_001, size=2)))), purpose="batch")
    held = gateway.rows(f"SELECT input FROM job_items WHERE job = '{file.id}' LIMIT 3")
    assert all(b"w w w" not in row[0] for row in held), "prompts are sealed at rest"
