"""The official OpenAI SDK at `/v1/responses` and `/v1/completions`, streamed: in front of an OpenAI provider and our own
engine."""
import time

import openai
import pytest

ASK = {"input": "Hello there", "instructions": "Be brief.", "max_output_tokens": 20, "temperature": 0}
MODELS = ["fake-n12", "smollm2-135m-instruct"]


@pytest.fixture
def client(stack, key):
    return openai.OpenAI(base_url=stack.url + "/v1", api_key=key, max_retries=0)


def last_row(stack, where):
    """The newest request of this kind, once the ledger has it."""
    for _ in range(100):
        found = stack.rows(f"SELECT surface, ending, output FROM requests JOIN attempts ON request = id WHERE {where} ORDER BY id DESC LIMIT 1")
        if found:
            return found[0]
        time.sleep(0.05)
    raise AssertionError("no row")


@pytest.mark.parametrize("model", MODELS)
def test_a_streamed_response_is_the_whole_one_in_pieces(client, model):
    whole = client.responses.create(model=model, **ASK)
    events = list(client.responses.create(model=model, **ASK, stream=True))
    assert events[0].type == "response.created" and events[-1].type in ("response.completed", "response.incomplete")
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text and len(text) > 3
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].response.usage.output_tokens == whole.usage.output_tokens > 1
    with client.responses.stream(model=model, **ASK) as stream:
        assert "".join(event.delta for event in stream if event.type == "response.output_text.delta") == text


@pytest.mark.parametrize("model", MODELS)
def test_a_streamed_completion_is_the_whole_one_in_pieces(client, model):
    ask = {"model": model, "prompt": "Once upon a time", "max_tokens": 12, "temperature": 0}
    whole = client.completions.create(**ask)
    chunks = list(client.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].text and len(chunks) > 3
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    without = list(client.completions.create(**ask, stream=True))
    assert all(not chunk.usage for chunk in without) and without[-1].choices[0].finish_reason


def test_who_leaves_a_streamed_response_stops_the_provider_and_pays_for_what_passed(stack, client):
    stack.forget()
    stream = client.responses.create(model="fake-gap10-n300", input="Hello there", stream=True)
    for event in stream:
        if event.type == "response.output_text.delta" and event.delta.startswith("tok9 "):
            stream.close()
            break
    surface, ending, output = last_row(stack, "surface = 'responses' AND ending = 'client_gone'")
    assert (surface, ending) == ("responses", "client_gone") and 10 <= output < 60
    [seen] = stack.seen()
    assert seen["ended"] == "cancelled" and seen["tokens"] < 60, seen


def test_a_response_that_breaks_off_says_so_before_its_connection_does(client):
    events = []
    with pytest.raises(openai.APIConnectionError):
        for event in client.responses.create(model="fake-n40-cut7", input="Hello there", stream=True):
            events.append(event)
    assert [event.type for event in events].count("response.output_text.delta") == 7
    assert events[-1].type == "error" and "broke off" in events[-1].message


def test_embeddings_are_not_streamed(client):
    with pytest.raises(openai.BadRequestError, match="not streamed"):
        client.post("/embeddings", body={"model": "fake-n12", "input": "x", "stream": True}, cast_to=object)
