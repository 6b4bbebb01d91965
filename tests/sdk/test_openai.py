"""The official OpenAI SDK with only `base_url` and key changed: in front of an OpenAI provider, an Anthropic one and
our own engine."""
import openai
import pytest

TOOLS = [{
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}]
HELLO = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello there"}]
MODELS = ["fake-n12", "fake-n13", "smollm2-135m-instruct"]


@pytest.fixture
def client(stack, key):
    return openai.OpenAI(base_url=stack.url + "/v1", api_key=key, max_retries=0)


@pytest.mark.parametrize("model", MODELS)
def test_chat(client, model):
    answer = client.chat.completions.create(model=model, messages=HELLO, max_tokens=20, temperature=0)
    assert answer.object == "chat.completion" and answer.choices[0].message.role == "assistant"
    assert len(answer.choices[0].message.content) > 3
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.prompt_tokens > 3 and answer.usage.completion_tokens > 1


@pytest.mark.parametrize("model", MODELS)
def test_streaming_is_the_whole_answer_in_pieces(client, model):
    ask = dict(model=model, messages=HELLO, max_tokens=20, temperature=0)
    whole = client.chat.completions.create(**ask).choices[0].message.content
    chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole and len(chunks) > 3
    assert chunks[-1].usage.completion_tokens > 1
    without = list(client.chat.completions.create(**ask, stream=True))
    assert all(chunk.usage is None for chunk in without)


@pytest.mark.parametrize("model", ["fake-tools", "fake-tools-n9"])
@pytest.mark.parametrize("stream", [False, True])
def test_tools_there_and_back(client, model, stream):
    messages = [{"role": "user", "content": "What is the weather in Oslo?"}]
    ask = dict(model=model, messages=messages, tools=TOOLS, max_tokens=100)
    if stream:
        with client.chat.completions.stream(**ask) as events:
            message = events.get_final_completion().choices[0].message
    else:
        answer = client.chat.completions.create(**ask)
        assert answer.choices[0].finish_reason == "tool_calls"
        message = answer.choices[0].message
    call = message.tool_calls[0]
    assert call.function.name == "weather" and call.function.arguments.startswith("{")
    messages += [message.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    after = client.chat.completions.create(model=model, messages=messages, tools=TOOLS, max_tokens=100)
    assert after.choices[0].finish_reason == "stop" and after.choices[0].message.content


def test_tools_are_told_to_a_model_without_tool_template(client):
    ask = dict(messages=[{"role": "user", "content": "Hello"}], tools=TOOLS, max_tokens=10)
    answer = client.chat.completions.create(model="smollm2-135m-instruct", **ask)
    plain = client.chat.completions.create(model="smollm2-135m-instruct", messages=ask["messages"], max_tokens=10)
    assert answer.usage.prompt_tokens > plain.usage.prompt_tokens


def test_models(client):
    assert {"auto", *MODELS} <= {model.id for model in client.models.list()}


@pytest.mark.parametrize(("model", "error"), [
    ("nobody-knows", openai.NotFoundError),
    ("fake-429", openai.RateLimitError),
    ("fake-400", openai.BadRequestError),
    ("fake-500", openai.InternalServerError),
])
def test_error_classes(client, model, error):
    with pytest.raises(error) as raised:
        client.chat.completions.create(model=model, messages=HELLO)
    assert raised.value.body["message"]


def test_a_wrong_key_is_an_authentication_error(stack):
    wrong = openai.OpenAI(base_url=stack.url + "/v1", api_key="tg_wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        wrong.chat.completions.create(model="auto", messages=HELLO)


def test_our_own_bad_request_names_the_field(client):
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model="auto", messages=HELLO, max_tokens=-1)
    assert raised.value.param == "max_tokens"
