"""The official SDKs and plain HTTP directly against local-backend, with the real model: every endpoint, streaming and
whole, forms, tools, thinking, cost, limits and cancelling."""
import concurrent.futures
import http.client
import json
import math
import re
import time
import urllib.error
import urllib.request

import anthropic
import openai
import pytest

from live import BIN, MODEL, Process

NAME = "smollm2-135m-instruct"
HELLO = [{"role": "user", "content": "What is the capital of France?"}]
BRIEF = [{"role": "system", "content": "Be brief."}] + HELLO
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "The weather in a city", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "maxLength": 12}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"], "additionalProperties": False}}}]
# As a thinking model's template ends: the block is open when the answer begins.
THINKING = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n<think>\n"
SETTINGS = """
models:
  - {{path: "{model}", name: {name}, kv_tokens: 16384}}
  - {{path: "{model}", name: thinker, kv_tokens: 2048, chat_template_file: "{template}"}}
slots: 4
queue: 6
max_n: 4
max_body_bytes: 200000
dollars_per_hour: "3.60"
tenants:
  acme: {{weight: 3, keys: ["file:{acme}"]}}
  gateway: {{keys: ["file:{gateway}"], speaks_for_others: true}}
"""


class Local:
    def __init__(self, folder):
        (folder / "template.jinja").write_text(THINKING)
        (folder / "acme").write_text("key-of-acme")
        (folder / "gateway").write_text("key-of-the-gateway")
        (folder / "local.yaml").write_text(SETTINGS.format(
            model=MODEL, name=NAME, template=folder / "template.jinja", acme=folder / "acme", gateway=folder / "gateway"))
        self.process = Process(str(BIN / "local-backend"), "serve", "--config", str(folder / "local.yaml"), "--listen", "127.0.0.1:0")
        self.url = self.process.address("listening on ")
        for _ in range(600):
            if self.get("/health")[0] == 200:
                break
            time.sleep(0.05)

    def get(self, path, key="key-of-acme", method="GET", body=None, headers=()):
        data = None if body is None else (body if isinstance(body, bytes) else json.dumps(body).encode())
        request = urllib.request.Request(self.url + path, data=data, method=method, headers={"authorization": f"Bearer {key}", **dict(headers)})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read() or b"null") if "json" in answer.headers["content-type"] else answer.read(), answer.headers
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read()), error.headers

    def post(self, path, body, **more):
        return self.get(path, method="POST", body=body, **more)

    def metrics(self):
        text = urllib.request.urlopen(self.url + "/metrics").read().decode()
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if not line.startswith("#")}

    def metric(self, name, **labels):
        labels = {"model_name": NAME, **labels}
        inner = ",".join(f'{label}="{value}"' for label, value in labels.items())
        return self.metrics().get(f"local_{name}{{{inner}}}", 0.0)

    def is_clean(self):
        return self.metric("num_requests_running") == self.metric("num_requests_waiting") == self.metric("kv_blocks_used") == 0


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    local = Local(tmp_path_factory.mktemp("local"))
    yield local
    local.process.stop()


@pytest.fixture
def client(local):
    return openai.OpenAI(base_url=local.url + "/v1", api_key="key-of-acme", max_retries=0)


@pytest.fixture
def claude(local):
    return anthropic.Anthropic(base_url=local.url, api_key="key-of-acme", max_retries=0)


def until(what, is_so, patience=10):
    end = time.monotonic() + patience
    while not is_so():
        assert time.monotonic() < end, what
        time.sleep(0.005)


def test_chat_with_everything_that_openai_has(client):
    ask = dict(model=NAME, messages=BRIEF, max_tokens=12, temperature=0)
    whole = client.chat.completions.create(**ask, logprobs=True, top_logprobs=3)
    text = whole.choices[0].message.content
    assert "Paris" in text
    likelihoods = whole.choices[0].logprobs.content
    assert "".join(token.token for token in likelihoods) == text and all(len(token.top_logprobs) == 3 for token in likelihoods)
    assert all(math.isclose(token.logprob, token.top_logprobs[0].logprob) for token in likelihoods)
    chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    timings = chunks[-1].timings
    assert timings["predicted_n"] == whole.usage.completion_tokens and timings["prompt_ms"] > 0 and timings["tokenize_ms"] >= 0


def test_several_answers_share_one_prompt_and_a_seed_repeats_them(client):
    ask = dict(model=NAME, messages=[{"role": "user", "content": "Write a story about " + "a very old " * 60 + "cat."}], max_tokens=8, n=3, seed=7, temperature=1)
    one, two = client.chat.completions.create(**ask), client.chat.completions.create(**ask)
    texts = [choice.message.content for choice in one.choices]
    assert texts == [choice.message.content for choice in two.choices] and len(set(texts)) == 3
    single = client.chat.completions.create(**{**ask, "n": 1})
    assert one.usage.prompt_tokens == single.usage.prompt_tokens and one.usage.completion_tokens > single.usage.completion_tokens
    chunks = client.chat.completions.create(**ask, stream=True)
    streamed = ["", "", ""]
    for chunk in chunks:
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_stop_strings_penalties_and_biases(client):
    ask = dict(model=NAME, messages=BRIEF, temperature=0)
    assert client.chat.completions.create(**ask, stop=["Par"], max_tokens=20).choices[0].message.content == "The capital of France is "
    banned = client.chat.completions.create(**ask, max_tokens=8, logit_bias={"504": -100}).choices[0].message.content
    plain = client.chat.completions.create(**ask, max_tokens=8).choices[0].message.content
    assert plain.startswith("The") and not banned.startswith("The")


def test_json_schema_is_kept_and_streams(client):
    schema = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}, "people": {"type": "integer", "minimum": 0, "maximum": 99}},
              "required": ["city", "people"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": schema, "strict": True}}
    ask = dict(model=NAME, messages=HELLO, response_format=form, max_tokens=60, temperature=1)
    for seed in range(4):
        answer = client.chat.completions.create(**ask, seed=seed).choices[0]
        place = json.loads(answer.message.content)
        assert answer.finish_reason == "stop" and set(place) == {"city", "people"} and 0 <= place["people"] <= 99
    text = "".join(chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**ask, stream=True) if chunk.choices)
    assert json.loads(text)["city"] in ("Paris", "Rome")
    free = client.chat.completions.create(**{**ask, "response_format": {"type": "json_object"}, "max_tokens": 200}).choices[0]
    if free.finish_reason == "stop":
        assert isinstance(json.loads(free.message.content), dict)
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(**{**ask, "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}})
    assert raised.value.param == "response_format"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_call_that_is_demanded_comes_with_valid_arguments(client, choice):
    ask = dict(model=NAME, messages=[{"role": "user", "content": "The weather in Oslo for 3 days?"}], tools=TOOLS, tool_choice=choice, max_tokens=80)
    answer = client.chat.completions.create(**ask, temperature=0).choices[0]
    assert answer.finish_reason == "tool_calls" and answer.message.content is None
    arguments = json.loads(answer.message.tool_calls[0].function.arguments)
    assert set(arguments) == {"city", "days"} and 1 <= arguments["days"] <= 9
    with client.chat.completions.stream(**ask, temperature=0) as events:
        call = events.get_final_completion().choices[0].message.tool_calls[0]
    assert json.loads(call.function.arguments) == arguments and call.id.startswith("call_")
    messages = ask["messages"] + [answer.message.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    assert client.chat.completions.create(model=NAME, messages=messages, tools=TOOLS, max_tokens=8).choices[0].message.content


@pytest.mark.parametrize(("field", "value", "budget"), [
    ("thinking_token_budget", 5, 5), ("thinking_budget_tokens", 9, 9), ("reasoning_effort", "none", 0), ("thinking_token_budget", 0, 0)])
def test_thinking_ends_when_its_budget_is_spent(client, field, value, budget):
    ask = dict(model="thinker", messages=HELLO, max_tokens=budget + 12, temperature=0)
    body = {"ignore_eos": True} | ({} if field == "reasoning_effort" else {field: value})
    more = {"extra_body": body} | ({field: value} if field == "reasoning_effort" else {})
    answer = client.chat.completions.create(**ask, **more)
    assert answer.usage.completion_tokens_details.reasoning_tokens == budget
    message = answer.choices[0].message
    assert bool(getattr(message, "reasoning_content", "")) == (budget > 0)
    assert message.content and "think>" not in message.content
    chunks = [chunk.choices[0].delta for chunk in client.chat.completions.create(**ask, **more, stream=True) if chunk.choices]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in chunks) == (getattr(message, "reasoning_content", None) or "")
    assert "".join(delta.content or "" for delta in chunks) == message.content


def test_completions(client):
    ask = dict(model=NAME, prompt="The capital of France is", max_tokens=4, temperature=0)
    whole = client.completions.create(**ask, logprobs=2)
    assert "Paris" in whole.choices[0].text and len(whole.choices[0].logprobs.tokens) == 4
    streamed = "".join(chunk.choices[0].text for chunk in client.completions.create(**ask, stream=True))
    assert streamed == whole.choices[0].text
    many = client.completions.create(**{**ask, "prompt": ["One, two,", "Red, green,"], "n": 2})
    assert [choice.index for choice in many.choices] == [0, 1, 2, 3] and many.choices[0].text == many.choices[1].text != many.choices[2].text
    with pytest.raises(openai.BadRequestError):
        client.completions.create(**{**ask, "prompt": [[999_999_999]]})


def test_responses(client):
    ask = dict(model=NAME, input="What is the capital of France?", instructions="Be brief.", max_output_tokens=30, temperature=0)
    whole = client.responses.create(**ask)
    assert "Paris" in whole.output_text and whole.status == "completed" and whole.usage.output_tokens > 3
    with client.responses.stream(**ask) as events:
        kinds = [event.type for event in events]
        final = events.get_final_response()
    assert final.output_text == whole.output_text and kinds[0] == "response.created" and kinds[-1] == "response.completed"
    assert client.responses.create(**{**ask, "max_output_tokens": 3}).status == "incomplete"
    tool = {"type": "function", **TOOLS[0]["function"]}
    called = client.responses.create(**{**ask, "max_output_tokens": 80}, tools=[tool], tool_choice="required")
    call = next(item for item in called.output if item.type == "function_call")
    assert set(json.loads(call.arguments)) == {"city", "days"}
    after = [{"role": "user", "content": "Weather?"}, call.model_dump(exclude_none=True), {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}]
    assert client.responses.create(**{**ask, "input": after}, tools=[tool]).output
    with pytest.raises(openai.BadRequestError):
        client.responses.create(**ask, previous_response_id="resp_1")


def test_messages(claude):
    ask = dict(model=NAME, system="Be brief.", messages=HELLO, max_tokens=30, extra_body={"temperature": 0})
    whole = claude.messages.create(**ask)
    assert "Paris" in whole.content[0].text and whole.stop_reason == "end_turn" and whole.usage.output_tokens > 3
    with claude.messages.stream(**ask) as events:
        final = events.get_final_message()
    assert final.content[0].text == whole.content[0].text and final.usage.output_tokens == whole.usage.output_tokens
    assert claude.messages.create(**{**ask, "max_tokens": 2}).stop_reason == "max_tokens"
    stopped = claude.messages.create(**ask, stop_sequences=["Par"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "Par")
    counted = claude.messages.count_tokens(model=NAME, system="Be brief.", messages=HELLO).input_tokens
    assert counted == whole.usage.input_tokens + whole.usage.cache_read_input_tokens


def test_messages_with_tools_and_thinking(claude):
    tool = {"name": "weather", "description": "d", "input_schema": TOOLS[0]["function"]["parameters"]}
    ask = dict(model=NAME, messages=[{"role": "user", "content": "Weather in Oslo?"}], max_tokens=80, extra_body={"temperature": 0}, tools=[tool])
    whole = claude.messages.create(**ask, tool_choice={"type": "any"})
    use = next(block for block in whole.content if block.type == "tool_use")
    assert whole.stop_reason == "tool_use" and set(use.input) == {"city", "days"}
    with claude.messages.stream(**ask, tool_choice={"type": "tool", "name": "weather"}) as events:
        streamed = events.get_final_message()
    assert next(block for block in streamed.content if block.type == "tool_use").input == use.input
    messages = ask["messages"] + [{"role": "assistant", "content": [use.model_dump(exclude_none=True)]},
                                  {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "rain"}]}]
    assert claude.messages.create(**{**ask, "messages": messages, "max_tokens": 8}).content
    thinking = dict(model="thinker", messages=HELLO, max_tokens=40)
    blocks = claude.messages.create(**thinking, extra_body={"temperature": 0, "thinking_token_budget": 6}).content
    assert [block.type for block in blocks] == ["thinking", "text"]


def test_errors_are_of_the_sdks_classes(local, client, claude):
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=local.url + "/v1", api_key="wrong", max_retries=0).models.list()
    with pytest.raises(anthropic.AuthenticationError):
        anthropic.Anthropic(base_url=local.url, api_key="wrong", max_retries=0).messages.create(model=NAME, messages=HELLO, max_tokens=1)
    with pytest.raises(openai.NotFoundError) as raised:
        client.chat.completions.create(model="nobody-knows", messages=HELLO)
    assert raised.value.code == "model_not_found" and NAME in raised.value.message
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(model="nobody-knows", messages=HELLO, max_tokens=1)
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": "word " * 17_000}])
    assert raised.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as raised:
        client.embeddings.create(model=NAME, input="hello")
    assert raised.value.code == "no_embeddings"
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model=NAME, messages=HELLO, n=9)
    assert raised.value.param == "n"
    assert {model.id for model in client.models.list()} == {NAME, "thinker"} and client.models.retrieve(NAME).id == NAME
    assert {model.id for model in claude.models.list()} == {NAME, "thinker"}


@pytest.mark.parametrize(("path", "body", "status"), [
    ("/v1/chat/completions", b"{", 400), ("/v1/chat/completions", b"[]", 400), ("/v1/chat/completions", b"\xff\xfe", 400),
    ("/v1/chat/completions", {"messages": []}, 400), ("/v1/chat/completions", {"messages": HELLO, "temperature": 9}, 400),
    ("/v1/chat/completions", {"messages": HELLO, "max_tokens": 0}, 400), ("/v1/chat/completions", {"messages": HELLO, "model": 3}, 400),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400),
    ("/v1/chat/completions", b'{"messages": ' + b" " * 200_001, 413), ("/v1/nothing", {}, 404), ("/v1/messages", {"messages": HELLO}, 400),
    ("/detokenize", {"tokens": [-1]}, 400), ("/tokenize", {}, 400)])
def test_bad_input_is_explained(local, path, body, status):
    got, answer, _ = local.post(path, body)
    assert got == status and len(answer["error"]["message"]) > 10
    assert (path == "/v1/messages") == (answer.get("type") == "error")


def test_tokens_and_templates(local):
    tokens = local.post("/tokenize", {"content": "Hello <|im_end|> you"})[1]["tokens"]
    assert 2 in tokens and local.post("/detokenize", {"tokens": tokens})[1]["content"] == "Hello <|im_end|> you"
    assert 2 not in local.post("/tokenize", {"content": "<|im_end|>", "parse_special": False})[1]["tokens"]
    prompt = local.post("/apply-template", {"messages": HELLO})[1]["prompt"]
    assert prompt.endswith("<|im_start|>assistant\n")
    assert local.post("/tokenize", {"messages": HELLO})[1]["count"] == len(local.post("/tokenize", {"prompt": prompt})[1]["tokens"])


def test_an_answer_tells_what_it_cost_and_how_busy_it_is(local):
    before = local.metric("cost_nanodollars_total", use="foreground")
    body = {"model": NAME, "messages": HELLO, "max_tokens": 10, "temperature": 0}
    status, answer, headers = local.post("/v1/chat/completions", body)
    cost = int(headers["x-local-cost-nanodollars"])
    # 3.60 dollars an hour are a million nanodollars a second.
    assert status == 200 and cost == answer["usage"]["x_local_cost_nanodollars"] and math.isclose(cost, answer["timings"]["busy_ms"] * 1000, rel_tol=0.01)
    assert int(headers["x-local-running"]) >= 0 and int(headers["x-local-waiting"]) >= 0 and "x-local-expected-wait-ms" in headers
    spent = local.metric("cost_nanodollars_total", use="foreground") - before
    assert cost <= spent * 1.001 + 1000
    assert local.metric("cost_nanodollars_total", use="idle") > 0 and local.metric("time_to_first_token_seconds_count") > 0
    shown = local.get("/slots")[1]["models"][0]
    assert shown["model"] == NAME and shown["load"]["slots"] == 4


def test_a_tenant_finds_nothing_of_anothers_cache(local):
    body = {"model": NAME, "messages": [{"role": "system", "content": "You are a helpful assistant of the sales team. " * 12}] + HELLO, "max_tokens": 2}
    cached = lambda **who: local.post("/v1/chat/completions", body, **who)[1]["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached() == 0 and cached() > 100
    gateway = dict(key="key-of-the-gateway")
    assert cached(**gateway, headers={"x-tollgate-tenant": "other"}) == 0
    assert cached(**gateway, headers={"x-tollgate-tenant": "acme"}) > 100


def test_background_runs_and_headers_are_checked(local):
    body = {"model": NAME, "messages": HELLO, "max_tokens": 4}
    before = local.metric("engine_seconds_total", use="background")
    assert local.post("/v1/chat/completions", body, headers={"x-tollgate-class": "background"})[0] == 200
    assert local.metric("engine_seconds_total", use="background") > before
    status, answer, _ = local.post("/v1/chat/completions", body, headers={"x-tollgate-class": "sometime"})
    assert status == 400 and "x-tollgate-class" in answer["error"]["message"]


def hang_up(local, body, when):
    host, port = local.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"authorization": "Bearer key-of-acme"})
    when()
    connection.sock.close()
    connection.close()


@pytest.mark.parametrize("stream", [False, True])
def test_hanging_up_ends_everything_in_every_phase(local, stream):
    until("clean", local.is_clean)
    long = {"model": NAME, "messages": [{"role": "user", "content": f"{stream} " + "word " * 3300}], "stream": stream, "max_tokens": 500}
    running = lambda: local.metric("num_requests_running") > 0
    before = local.metric("cancelled_total", phase="prefill")
    hang_up(local, long, lambda: until("it runs", running))
    until("clean", local.is_clean)
    assert local.metric("cancelled_total", phase="prefill") == before + 1
    before = local.metric("cancelled_total", phase="decode")
    short = {**long, "messages": HELLO, "temperature": 1, "ignore_eos": True, "max_tokens": 4000}
    produced = local.metric("generation_tokens_total")
    hang_up(local, short, lambda: until("it answers", lambda: local.metric("generation_tokens_total") > produced + 3))
    until("clean", local.is_clean)
    assert local.metric("cancelled_total", phase="decode") == before + 1


def test_a_full_queue_says_when_to_come_again(local):
    until("clean", local.is_clean)
    body = {"model": NAME, "messages": HELLO, "max_tokens": 60, "ignore_eos": True}
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda _: local.post("/v1/chat/completions", body), range(24)))
    refused = [(answer, headers) for status, answer, headers in answers if status == 429]
    assert refused and {status for status, *_ in answers} == {200, 429}
    assert all(1 <= int(headers["retry-after"]) <= 60 and answer["error"]["code"] == "queue_full" for answer, headers in refused)
    until("clean", local.is_clean)


def test_sigterm_lets_an_answer_finish(tmp_path):
    process = Process(str(BIN / "local-backend"), "serve", "--model", str(MODEL), "--listen", "127.0.0.1:0")
    url = process.address("listening on ")
    host, port = re.match(r"http://(.+):(\d+)", url).groups()
    for _ in range(600):
        try:
            urllib.request.urlopen(url + "/health")
            break
        except urllib.error.HTTPError:
            time.sleep(0.05)
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    connection.request("POST", "/v1/chat/completions", json.dumps({"messages": HELLO, "max_tokens": 60, "ignore_eos": True, "stream": True}))
    answer = connection.getresponse()
    assert answer.readline().startswith(b"data: ")
    process.child.terminate()
    rest = answer.read().decode()
    assert rest.rstrip().endswith("data: [DONE]") and '"finish_reason":"length"' in rest
    assert process.child.wait(20) == 0
