"""A job of 1,000 items whose budget pays for 600, polled once a second for an hour: `poll_hour.py [SECONDS]`.

Run by hand, with `PYTHONPATH=tests`. Says what the ledger holds before and after, and fails when polling has changed anything.
"""
import pathlib
import sys
import tempfile
import time

from batch_stack import Gateway
from test_money import client, create, ended, upload
from waiting import until

ITEMS, PAID = 1000, 600
BOOKS = {
    "requests": "SELECT count(*), coalesce(sum(charge), 0) FROM requests",
    "attempts": "SELECT count(*), coalesce(sum(charge), 0) FROM attempts",
    "budget": "SELECT sum(spent), sum(amount) FROM budget_windows",
    "leases of jobs": "SELECT count(*), coalesce(sum(taken), 0) FROM leases WHERE node LIKE 'job/%'",
    "items": "SELECT state, count(*), coalesce(sum(charge), 0), sum(saved) FROM job_items GROUP BY 1 ORDER BY 1",
}


def gateway(folder, name, **settings):
    (folder / name).mkdir()
    return Gateway(folder / name, **settings)


def books(stack):
    return {name: stack.rows(query) for name, query in BOOKS.items()}


def poll(sdk, batch, seconds):
    """One poll a second, against the clock; each minute the answers are fetched too. How many polls there were."""
    began = time.monotonic()
    for number in range(seconds):
        time.sleep(max(0.0, began + number - time.monotonic()))
        found = sdk.batches.retrieve(batch.id)
        assert found.request_counts.completed == PAID, found.request_counts
        if number % 60 == 0:
            assert len(sdk.files.content(found.output_file_id).text.splitlines()) == PAID
        if number % 600 == 0:
            print(f"{time.monotonic() - began:6.0f} s, {number + 1} polls", flush=True)
    return seconds


def play(folder, seconds):
    probe = gateway(folder, "probe")
    file = upload(client(probe), ITEMS)
    held = probe.rows(f"SELECT sum(held) FROM job_items WHERE job = '{file.id}' AND number <= {PAID}")[0][0]
    probe.stop()
    stack = gateway(folder, "stack", budget=f"{held / 1e9:.9f}", over_budget="trim")
    try:
        sdk = client(stack)
        batch = ended(sdk, create(sdk, upload(sdk, ITEMS)))
        assert (batch.request_counts.completed, batch.request_counts.failed) == (PAID, ITEMS - PAID), batch.request_counts
        until(lambda: books(stack)["requests"][0][0] == PAID and books(stack)["leases of jobs"][0][0] == 0)
        before = books(stack)
        truth = sum(item["input_tokens"] * 500_000 + item["output_tokens"] * 1_000_000
                    for found in stack.batches() for item in found["items"])
        print(f"budget {held} nano-dollars; the provider's bill {truth}; before: {before}", flush=True)
        assert before["requests"] == [(PAID, truth)] and before["budget"][0][0] == truth <= held
        polls = poll(sdk, batch, seconds)
        # Whatever a poll might have written is written by now.
        time.sleep(2)
        after = books(stack)
        print(f"{polls} polls in {seconds} s; after: {after}", flush=True)
        assert after == before, "polling has changed the books"
        print("nothing was charged by polling")
    finally:
        stack.stop()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        play(pathlib.Path(made), int(sys.argv[1]) if len(sys.argv) > 1 else 3600)
