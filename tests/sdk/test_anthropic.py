"""The official Anthropic SDK with only `base_url` and key changed: in front of an Anthropic provider, an OpenAI one and
our own engine."""
import anthropic
import pytest

TOOLS = [{
    "name": "weather",
    "description": "The weather in a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}]
HELLO = [{"role": "user", "content": "Hello there"}]
MODELS = ["fake-n13", "fake-n12", "smollm2-135m-instruct"]


@pytest.fixture
def client(stack, key):
    return anthropic.Anthropic(base_url=stack.url, api_key=key, max_retries=0)


@pytest.mark.parametrize("model", MODELS)
def test_chat(client, model):
    answer = client.messages.create(model=model, max_tokens=20, system="Be brief.", messages=HELLO, extra_body={"temperature": 0})
    assert answer.type == "message" and answer.role == "assistant"
    assert len(answer.content[0].text) > 3
    assert answer.stop_reason in ("end_turn", "max_tokens")
    assert answer.usage.input_tokens > 3 and answer.usage.output_tokens > 1


@pytest.mark.parametrize("model", MODELS)
def test_streaming_is_the_whole_answer_in_pieces(client, model):
    ask = dict(model=model, max_tokens=20, system="Be brief.", messages=HELLO, extra_body={"temperature": 0})
    whole = client.messages.create(**ask).content[0].text
    with client.messages.stream(**ask) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    assert "".join(pieces) == whole and len(pieces) > 3
    assert final.usage.output_tokens > 1 and final.stop_reason in ("end_turn", "max_tokens")


def test_thinking_comes_as_blocks_of_its_own(client):
    answer = client.messages.create(model="fake-think6-n5", max_tokens=4000, messages=HELLO,
                                    thinking={"type": "enabled", "budget_tokens": 2000})
    assert [block.type for block in answer.content] == ["thinking", "text"]
    assert answer.content[0].signature


@pytest.mark.parametrize("model", ["fake-tools-n9", "fake-tools"])
@pytest.mark.parametrize("stream", [False, True])
def test_tools_there_and_back(client, model, stream):
    messages = [{"role": "user", "content": "What is the weather in Oslo?"}]
    ask = dict(model=model, max_tokens=100, messages=messages, tools=TOOLS)
    if stream:
        with client.messages.stream(**ask) as events:
            answer = events.get_final_message()
    else:
        answer = client.messages.create(**ask)
    assert answer.stop_reason == "tool_use"
    call = next(block for block in answer.content if block.type == "tool_use")
    assert call.name == "weather" and isinstance(call.input, dict)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "rain"}
    messages += [{"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in answer.content]},
                 {"role": "user", "content": [result]}]
    after = client.messages.create(model=model, max_tokens=100, messages=messages, tools=TOOLS)
    assert after.stop_reason == "end_turn" and after.content[0].text


def test_models(client):
    assert {"auto", *MODELS} <= {model.id for model in client.models.list()}


@pytest.mark.parametrize(("model", "error"), [
    ("nobody-knows", anthropic.NotFoundError),
    ("fake-429", anthropic.RateLimitError),
    ("fake-400", anthropic.BadRequestError),
    ("fake-500", anthropic.InternalServerError),
])
def test_error_classes(client, model, error):
    with pytest.raises(error):
        client.messages.create(model=model, max_tokens=10, messages=HELLO)


def test_a_wrong_key_is_an_authentication_error(stack):
    wrong = anthropic.Anthropic(base_url=stack.url, api_key="tg_wrong", max_retries=0)
    with pytest.raises(anthropic.AuthenticationError):
        wrong.messages.create(model="auto", max_tokens=10, messages=HELLO)
