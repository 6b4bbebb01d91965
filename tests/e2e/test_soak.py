"""A short stretch of the soak: `soak --seconds 1800` is the long one, by hand."""
import json
import subprocess

from conftest import BIN, MODEL


def test_a_few_seconds_of_everything_at_once_leave_nothing_behind():
    ran = subprocess.run([BIN / "soak", "--seconds", "8", "--clients", "16", "--model", MODEL], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    report = json.loads(ran.stdout.splitlines()[-1])
    assert report["answered"] > 10 and report["left"] > 2 and report["bad_input"] > 2 and report["nothing_left_behind"]
