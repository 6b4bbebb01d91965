"""A model that was trained to call tools does so, of its own accord and with valid arguments, through the official SDK:
directly, and through the gateway. Runs where the model lies; `local-backend pull qwen2.5-coder-1.5b-instruct` fetches its 1.1 GB."""
import hashlib
import json
import time
import urllib.error
import urllib.request

import openai
import pytest

from live import BIN, KEY, MODEL, Process

NAME = "qwen2.5-coder-1.5b-instruct"
QWEN = MODEL.with_name(f"{NAME}-q4_k_m.gguf")
pytestmark = pytest.mark.skipif(not QWEN.exists(), reason=f"{QWEN.name} (1.1 GB) is not there: `{BIN.name}/local-backend pull {NAME}`")

TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "Get the weather forecast for a city", "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer", "description": "How many days ahead"},
                                         "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}}, "required": ["city", "days"]}}},
    {"type": "function", "function": {"name": "send_mail", "description": "Send an e-mail", "parameters": {
        "type": "object", "properties": {"to": {"type": "string"}, "subject": {"type": "string"}}, "required": ["to", "subject"]}}},
]
ASK = [{"role": "user", "content": "What will the weather be in Oslo for the next 3 days, in celsius?"}]

POLICY = f"""
version: 1
deployments:
  - {{id: qwen, provider: local, model: {NAME}, class: local, context_tokens: 8192, capabilities: [tools]}}
routes:
  - {{name: all, prefer: [qwen]}}
"""
CONFIG = """
listen: [{{address: "127.0.0.1:0"}}]
admin: {{address: "127.0.0.1:0"}}
providers:
  local: {{dialect: openai_chat, base_url: "{local}/v1"}}
accounts:
  acme: {{teams: {{sdk: {{keys: {{tests: {{hash: "sha256:{hash}"}}}}}}}}}}
unpriced_ceiling_dollars: "0.001"
"""


@pytest.fixture(scope="module")
def urls(tmp_path_factory):
    """Of the engine itself, and of a gateway before it."""
    folder = tmp_path_factory.mktemp("tools")
    engine = Process(str(BIN / "local-backend"), "serve", "--model", str(QWEN), "--kv-tokens", "8192", "--listen", "127.0.0.1:0")
    local = engine.address("listening on ")
    for _ in range(1200):
        try:
            urllib.request.urlopen(local + "/health")
            break
        except urllib.error.HTTPError:
            time.sleep(0.1)
    (folder / "policy.yaml").write_text(POLICY)
    (folder / "tollgate.yaml").write_text(CONFIG.format(local=local, hash=hashlib.sha256(KEY.encode()).hexdigest()))
    gateway = Process(str(BIN / "tollgate"), "serve", "--config", str(folder / "tollgate.yaml"))
    yield {"engine": local, "gateway": gateway.address("listening on ")}
    gateway.stop()
    engine.stop()


@pytest.fixture(params=["engine", "gateway"])
def client(request, urls):
    return openai.OpenAI(base_url=urls[request.param] + "/v1", api_key=KEY, max_retries=0)


def message_of(client, stream, **ask):
    ask = dict(model=NAME, tools=TOOLS, max_tokens=120, temperature=0) | ask
    if not stream:
        return client.chat.completions.create(**ask).choices[0]
    with client.chat.completions.stream(**ask) as events:
        return events.get_final_completion().choices[0]


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_comes_unasked_with_valid_arguments_and_its_result_is_used(client, stream):
    choice = message_of(client, stream, messages=ASK)
    assert choice.finish_reason == "tool_calls" and len(choice.message.tool_calls) == 1
    call = choice.message.tool_calls[0]
    arguments = json.loads(call.function.arguments)
    assert (call.type, call.function.name) == ("function", "get_weather") and call.id
    assert arguments["city"] == "Oslo" and arguments["days"] == 3 and arguments.get("unit", "celsius") == "celsius"
    result = {"role": "tool", "tool_call_id": call.id, "content": json.dumps({"forecast": ["rain, 4", "snow, -2", "sun, 1"]})}
    # A model this small likes to ask again: it is told not to.
    after = message_of(client, stream, messages=[*ASK, choice.message.model_dump(exclude_none=True), result], tool_choice="none")
    assert after.finish_reason == "stop" and not after.message.tool_calls and "snow" in after.message.content.lower()


@pytest.mark.parametrize("stream", [False, True])
def test_without_need_of_a_tool_there_is_no_call(client, stream):
    choice = message_of(client, stream, messages=[{"role": "user", "content": "Say hello in French, in one word."}], tool_choice="none")
    assert choice.finish_reason == "stop" and not choice.message.tool_calls and "bonjour" in choice.message.content.lower()


@pytest.mark.parametrize("stream", [False, True])
def test_the_tool_that_is_named_is_called(client, stream):
    choice = message_of(client, stream, messages=[{"role": "user", "content": "Tell anna@example.org that lunch is at noon."}],
                        tool_choice={"type": "function", "function": {"name": "send_mail"}})
    call = choice.message.tool_calls[0]
    assert choice.finish_reason == "tool_calls" and call.function.name == "send_mail"
    assert json.loads(call.function.arguments)["to"] == "anna@example.org"
