"""local-backend's other commands, and several models in one process: loading that is told of, on demand, within a budget of
memory, and unloading. What sampling fields and guessing do to an answer, over the wire."""
import contextlib
import json
import re
import subprocess
import time
import urllib.error
import urllib.request

import pytest

from live import BIN, MODEL, Process

NAME = "smollm2-135m-instruct"
# Weights of 97 MB, and 12 MB of cache for 512 tokens: room for one model of the two.
SETTINGS = """
models:
  - {{path: "{model}", name: one, kv_tokens: 512}}
  - {{path: "{model}", name: two, kv_tokens: 512, kv_cache: int8}}
memory_bytes: 150000000
idle_unload_s: 2
speculation: {speculation}
"""


def run(*arguments):
    ran = subprocess.run([BIN / "local-backend", *map(str, arguments)], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def send(url, body=None):
    """Asks, with a body by POST; a refusal is an answer too."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body and json.dumps(body).encode()), timeout=120) as answer:
            return answer.status, json.loads(answer.read()), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read()), error.headers


def states(url):
    return {model["id"]: model["state"] for model in send(url + "/v1/models")[1]["data"]}


@contextlib.contextmanager
def serve(folder, speculation="true"):
    (folder / "local.yaml").write_text(SETTINGS.format(model=MODEL, speculation=speculation))
    process = Process(str(BIN / "local-backend"), "serve", "--config", str(folder / "local.yaml"), "--listen", "127.0.0.1:0")
    try:
        yield process.address("listening on ")
    finally:
        process.stop()


def until(what, is_so, patience=20):
    end = time.monotonic() + patience
    while not is_so():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def test_models_are_listed_inspected_pulled_and_measured():
    assert {line.split("\t")[0] for line in run("list", "--known").splitlines()} >= {NAME, "qwen2.5-coder-1.5b-instruct", "gemma-3-270m"}
    assert any(line.startswith(f"{NAME}\t98 MB") for line in run("list", "--dir", MODEL.parent).splitlines())
    shown = json.loads(run("inspect", MODEL))
    assert (shown["architecture"], shown["layers"], shown["context_tokens"]) == ("llama", 30, 8192) and "<|im_start|>" in shown["chat_template"]
    # It is there already, and its sum is right: nothing is fetched.
    assert run("pull", NAME, "--dir", MODEL.parent).strip() == str(MODEL)
    line = json.loads(run("bench", "--model", MODEL, "--prompt", 32, "--generate", 8, "--batch", "1,2", "--rounds", 1, "--json"))
    assert [test["test"] for test in line["tests"]] == ["pp32", "tg8", "tg8 × 2"] and all(test["tokens_per_second"]["best"] > 1 for test in line["tests"])
    line = json.loads(run("bench", "--model", MODEL, "--clients", 3, "--prompt", 16, "--generate", 6, "--rounds", 2, "--json"))
    assert line["clients"] == 3 and len(line["ours"]) == 2 and all(round["first_token_ms"] > 0 for round in line["ours"])


def test_loading_is_told_of():
    process = subprocess.Popen([BIN / "local-backend", "serve", "--model", MODEL, "--listen", "127.0.0.1:0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    url = process.stdout.readline().removeprefix("listening on ").strip()
    seen = []
    while not seen or seen[-1]["state"] != "ready":
        status, body, _ = send(url + "/health")
        seen.append(body["models"][0])
        assert (status == 200) == (seen[-1]["state"] == "ready")
    assert seen[-1]["progress"] == 1 and all(0 <= model["progress"] < 1 for model in seen if model["state"] == "unloaded")
    told = [model["progress"] for model in seen]
    assert told == sorted(told)
    process.terminate()
    assert re.search(rf"^loaded {NAME} in \d+\.\d s$", process.communicate(timeout=20)[1], re.MULTILINE)


def test_models_come_when_they_are_asked_for_and_go_when_they_are_not(tmp_path):
    with serve(tmp_path) as url:
        ask = dict(messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is the capital of France?"}], max_tokens=12, temperature=0)
        one = send(url + "/v1/chat/completions", {**ask, "model": "one"})[1]["choices"][0]["message"]["content"]
        assert states(url) == {"one": "ready", "two": "unloaded"}
        held = urllib.request.urlopen(urllib.request.Request(url + "/v1/chat/completions", json.dumps(
            {**ask, "model": "one", "stream": True, "max_tokens": 400, "ignore_eos": True}).encode()), timeout=60)
        held.readline()
        status, body, headers = send(url + "/v1/chat/completions", {**ask, "model": "two"})
        assert (status, body["error"]["code"]) == (503, "no_memory") and int(headers["retry-after"]) > 0
        held.close()
        until("room for the other", lambda: send(url + "/v1/chat/completions", {**ask, "model": "two"})[0] == 200)
        assert states(url) == {"one": "unloaded", "two": "ready"}
        two = send(url + "/v1/chat/completions", {**ask, "model": "two"})[1]["choices"][0]["message"]["content"]
        assert "Paris" in one and "Paris" in two, "eight bits of cache answer as well"
        until("both idle", lambda: set(states(url).values()) == {"unloaded"})
        assert send(url + "/health")[0] == 200


def test_guesses_save_steps_and_change_nothing(tmp_path):
    text = " ".join(["I like cats."] * 5)
    answers = []
    for speculation in ("true", "false"):
        with serve(tmp_path, speculation) as url:
            def steps():
                lines = urllib.request.urlopen(url + "/metrics").read().decode().splitlines()
                return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("local_steps_total{"))
            ask = {"model": "one", "prompt": text, "max_tokens": 100, "temperature": 0, "ignore_eos": True}
            send(url + "/v1/completions", {**ask, "prompt": "warm up", "max_tokens": 2})
            before = steps()
            answer = send(url + "/v1/completions", ask)[1]
            answers.append((answer["choices"][0]["text"], steps() - before, answer["timings"]["predicted_per_second"]))
    (guessed, some, fast), (plain, all, slow) = answers
    print(f"\n100 tokens in {some:.0f} steps at {fast:.0f} tokens/s with guesses, {all:.0f} steps at {slow:.0f} without")
    assert guessed == plain and some < all / 2


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("sampling")) as url:
        yield url


def text(url, **more):
    body = {"model": "one", "prompt": "The three primary colours are", "max_tokens": 24, "temperature": 0, "ignore_eos": True, **more}
    status, answer, _ = send(url + "/v1/completions", body)
    assert status == 200, answer
    return answer["choices"][0]["text"]


def test_sampling_fields_do_what_they_say(url):
    plain = text(url)
    assert text(url, temperature=2, min_p=1) == text(url, temperature=2, top_k=1) == text(url, temperature=2, top_p=0.000001) == plain
    hot = [text(url, temperature=1.5, seed=seed) for seed in (1, 1, 2)]
    assert hot[0] == hot[1] != hot[2]
    repeats = lambda text: len(text.split()) - len(set(text.split()))
    looping = dict(prompt=" ".join(["I like cats."] * 5))
    loop = text(url, **looping)
    for penalty in ({"repetition_penalty": 1.8}, {"repeat_penalty": 1.8}, {"frequency_penalty": 2}, {"presence_penalty": 2}):
        assert repeats(text(url, **looping, **penalty)) < repeats(loop), penalty


def test_a_stream_that_waits_says_that_it_lives(tmp_path):
    (tmp_path / "local.yaml").write_text(f'models: [{{path: "{MODEL}", name: one, kv_tokens: 8192}}]\nslots: 1\ndrain_s: 1\n')
    process = Process(str(BIN / "local-backend"), "serve", "--config", str(tmp_path / "local.yaml"), "--listen", "127.0.0.1:0")
    url = process.address("listening on ")
    body = json.dumps({"model": "one", "prompt": "Once", "max_tokens": 8000, "ignore_eos": True, "temperature": 1, "stream": True}).encode()
    ask = lambda: urllib.request.urlopen(urllib.request.Request(url + "/v1/completions", body), timeout=60)
    try:
        first = ask()
        assert first.readline().startswith(b"data: ")
        asked = time.monotonic()
        assert ask().readline() == b": still here\n" and 9 < time.monotonic() - asked < 30
    finally:
        process.stop()
