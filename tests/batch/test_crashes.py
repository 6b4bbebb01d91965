"""A short form of `batchcrash`: gateways are killed while they carry batches, and three books must agree."""
import subprocess

from live import BIN


def test_kills_between_steps_lose_and_double_nothing():
    run = subprocess.run([BIN / "batchcrash", "--nodes", "2", "--kills", "12", "--bin", BIN], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
