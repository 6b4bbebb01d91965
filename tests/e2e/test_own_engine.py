"""The gateway and our own engine: what the engine says an answer cost is charged where it is trusted with that, and who is
in a hurry is not sent to the end of its queue."""
import hashlib
import json
import threading
import time
import urllib.request

import pytest

from live import BIN, MODEL, Process, rows

KEY = "tg_a_key_for_the_tests_of_our_own_engine_01"
NAME = "smollm2-135m-instruct"

ENGINE = """
listen: 127.0.0.1:0
slots: 1
dollars_per_hour: "3.60"
models: [{{path: "{model}", preload: true}}]
"""

# The fake's `own` says that whoever comes next would wait half a minute.
POLICY = f"""
version: 1
virtual_models: [auto, scripted, plain]
latency_tiers:
  interactive: {{first_token_ms: 1000, dollars_per_second: 0}}
  deferred: {{dollars_per_second: 0}}
deployments:
  - {{id: engine, provider: engine, model: {NAME}, class: local, quality: {{default: 0.9}}, speed: {{first_token_ms: 50, tokens_per_second: 60}}}}
  - {{id: untrusted, provider: plain, model: {NAME}, class: local, quality: {{default: 0.9}}}}
  - {{id: own, provider: fake, model: fake-n4-wait30000, class: local, quality: {{default: 0.9}}}}
  - {{id: cheap, provider: fake, model: fake-n4, class: cheap, quality: {{default: 0.9}}}}
latency:
  - {{name: may-wait, when: {{label: {{wait: "yes"}}}}, tier: deferred}}
  - {{name: now, tier: interactive}}
routes:
  - {{name: scripted, when: {{model: scripted}}, prefer: [own, cheap]}}
  - {{name: plain, when: {{model: plain}}, prefer: [untrusted]}}
  - {{name: all, prefer: [engine, cheap]}}
"""

CONFIG = """
listen: [{{address: "127.0.0.1:0"}}]
admin: {{address: "127.0.0.1:0"}}
providers:
  engine: {{dialect: openai_chat, base_url: "{engine}/v1", reports_cost: true, reports_load: true}}
  plain: {{dialect: openai_chat, base_url: "{engine}/v1"}}
  fake: {{dialect: openai_chat, base_url: "{fake}/v1", credential: "file:credential", reports_load: true}}
accounts:
  acme: {{budgets: [{{limit_dollars: "100", per: month}}], keys: {{one: {{hash: "sha256:{hash}"}}}}}}
unpriced_ceiling_dollars: "0.001"
"""


class Pair:
    def __init__(self, folder):
        self.folder = folder
        (folder / "engine.yaml").write_text(ENGINE.format(model=MODEL))
        (folder / "credential").write_text("sk-fake-credential")
        (folder / "policy.yaml").write_text(POLICY)
        self.processes = []
        self.engine = self.start(BIN / "local-backend", "serve", "--config", folder / "engine.yaml")
        fake = self.start(BIN / "fake-provider")
        hashed = hashlib.sha256(KEY.encode()).hexdigest()
        (folder / "tollgate.yaml").write_text(CONFIG.format(engine=self.engine, fake=fake, hash=hashed))
        self.url = self.start(BIN / "tollgate", "serve", "--config", folder / "tollgate.yaml")

    def start(self, *command):
        self.processes.append(Process(*map(str, command)))
        return self.processes[-1].address("listening on ")

    def ask(self, model, **body):
        headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
        headers |= {f"x-tollgate-tag-{name}": value for name, value in body.pop("tags", {}).items()}
        body = {"model": model, "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8, "temperature": 0, **body}
        request = urllib.request.Request(self.url + "/v1/chat/completions", data=json.dumps(body).encode(), headers=headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.headers["x-tollgate-deployment"], answer.read().decode()

    def occupy(self, count):
        """Asks the engine itself, behind the gateway's back."""
        body = {"model": NAME, "messages": [{"role": "user", "content": "Tell a long story."}], "max_tokens": 150, "ignore_eos": True}

        def one():
            request = urllib.request.Request(self.engine + "/v1/chat/completions", data=json.dumps(body).encode())
            urllib.request.urlopen(request, timeout=300).read()

        threads = [threading.Thread(target=one) for _ in range(count)]
        for thread in threads:
            thread.start()
        return threads

    def spent(self):
        """What the engine says that everything it ever did has cost."""
        text = urllib.request.urlopen(self.engine + "/metrics").read().decode()
        return sum(int(float(line.split()[-1])) for line in text.splitlines() if line.startswith("local_cost_nanodollars_total") and "idle" not in line)

    def charge(self, count):
        """The charge of the last row, once there are so many."""
        for _ in range(100):
            found = rows(self.folder, "SELECT charge FROM requests ORDER BY id DESC")
            if len(found) == count:
                return found[0][0]
            time.sleep(0.05)
        raise AssertionError(f"{len(found)} rows instead of {count}")

    def stop(self):
        for process in reversed(self.processes):
            process.stop()


@pytest.fixture()
def pair(tmp_path):
    assert MODEL.exists(), "the model is missing: run deploy/fetch-model.sh"
    pair = Pair(tmp_path)
    for _ in range(300):
        try:
            urllib.request.urlopen(pair.engine + "/health")
            break
        except urllib.error.HTTPError:
            time.sleep(0.1)
    yield pair
    pair.stop()


def test_what_the_engine_reports_is_charged_where_it_is_trusted(pair):
    count = 0
    for stream in (False, True):
        before = pair.spent()
        assert pair.ask(NAME, stream=stream)[0] == "engine"
        count += 1
        charged, spent = pair.charge(count), pair.spent() - before
        # The engine's counter has whole microseconds of each step, and a microsecond costs a nano-dollar.
        assert charged > 1_000 and abs(charged - spent) < 50, (stream, charged, spent)
    # The caller sees the figure where it asks for the usage.
    _, text = pair.ask(NAME, stream=True, stream_options={"include_usage": True})
    told = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")][-1]["usage"]
    assert told["x_local_cost_nanodollars"] == pair.charge(count + 1)
    # The same engine as a provider that is not trusted: the ceiling for models without a price.
    before = pair.spent()
    assert pair.ask("plain")[0] == "untrusted"
    assert pair.charge(count + 2) == 1_000_000 != pair.spent() - before > 0


def test_who_is_in_a_hurry_is_not_sent_to_a_long_queue(pair):
    assert pair.ask("scripted")[0] == "own"
    # Its answer said that the next one would wait for half a minute.
    assert pair.ask("scripted")[0] == "cheap"
    assert pair.ask("scripted", tags={"wait": "yes"})[0] == "own"


def test_the_engines_queue_is_known_without_a_call_through_the_gateway(pair):
    # Until a story is told the engine cannot know how long stories are.
    for thread in pair.occupy(3):
        thread.join()
    time.sleep(1.3)  # the gateway looks once a second
    assert pair.ask("auto")[0] == "engine"
    threads = pair.occupy(12)
    time.sleep(1.3)
    assert pair.ask("auto")[0] == "cheap", "stories are before it"
    for thread in threads:
        thread.join()
    time.sleep(1.3)
    assert pair.ask("auto")[0] == "engine", "the queue is gone"
