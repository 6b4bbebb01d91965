"""The FOCUS export of a running gateway's ledger sums to it to the nano-dollar."""
import csv
import datetime
import decimal
import io
import subprocess

import openai
from live import BIN


def export(stack, *arguments):
    month = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m")
    command = [BIN / "tollgate", "export", "focus", "--month", month, "--config", stack.folder / "tollgate.yaml", *arguments]
    return subprocess.run(command, capture_output=True, check=True).stdout


def test_focus_sums_to_the_ledger(stack, key):
    client = openai.OpenAI(base_url=stack.url + "/v1", api_key=key, max_retries=0)
    for model in ("fake-n12", "fake-n13", "smollm2-135m-instruct"):
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hello"}], max_tokens=5)
    stack.count()
    rows = list(csv.DictReader(io.StringIO(export(stack).decode())))
    billed = sum(decimal.Decimal(row["BilledCost"]) for row in rows)
    charged = stack.rows("SELECT sum(charge) FROM requests")[0][0]
    assert charged > 0 and billed == decimal.Decimal(charged) / 10**9
    assert {"fake-n12", "fake-n13", "smollm2-135m-instruct"} <= {row["x_Model"] for row in rows}

    path = stack.folder / "focus.parquet"
    told = export(stack, "--out", path).decode()
    assert f"{len(rows)} rows" in told and path.read_bytes()[:4] == b"PAR1"
