"""Money while things break: real gateways, a Postgres and a Redis of the test's own, both killed. The long versions are run by
hand: `storm --help`."""
import re
import subprocess

from conftest import BIN


def storm(*arguments):
    run = subprocess.run([BIN / "storm", *arguments], capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def figure(text, name):
    return int(re.search(rf"^{name} +(\d+)", text, re.M).group(1))


def test_nothing_fails_and_nothing_is_lost_while_the_store_and_redis_are_away():
    said = storm("--away", "4", "--calm-s", "6", "--rate", "40", "--redis")
    away = re.search(r"^the store is away +(\d+) requests, (\d+) failed", said, re.M)
    assert int(away.group(1)) > 60 and int(away.group(2)) == 0
    assert figure(said, "lost attempts") == 0 and figure(said, "duplicated") == 0


def test_a_small_storm_overspends_loses_and_starves_nothing():
    said = storm("--requests", "1500", "--teams", "5", "--kill", "3", "--outages", "1", "--outage-s", "2", "--at-once", "60", "--redis")
    assert [figure(said, name) for name in ("overspend", "lost attempts", "duplicated", "starved")] == [0, 0, 0, 0]
    assert figure(said, "refused") > 0


def test_a_crowd_gets_what_one_budget_pays_for_and_no_more():
    said = storm("--requests", "1500", "--even", "400")
    served = float(re.search(r"^served +([\d.]+) %", said, re.M).group(1))
    assert figure(said, "overspend") == 0 and 99 <= served <= 100
