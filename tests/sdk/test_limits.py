"""What the official SDKs make of a rate limit and of a budget that is used up, and what answers tell of the limits."""
import anthropic
import openai
import pytest

HELLO = [{"role": "user", "content": "hello"}]


def test_openai_sees_a_rate_limit_and_what_is_left(stack, limited_keys):
    client = openai.OpenAI(base_url=stack.url + "/v1", api_key=limited_keys["openai"], max_retries=0)
    for left in ("1", "0"):
        raw = client.chat.completions.with_raw_response.create(model="fake-n12", messages=HELLO)
        assert raw.headers["x-ratelimit-limit-requests"] == "2"
        assert raw.headers["x-ratelimit-remaining-requests"] == left
        assert raw.headers["x-ratelimit-limit-tokens"] == "1000000"
        assert raw.headers["x-ratelimit-reset-requests"].endswith("s")
    with pytest.raises(openai.RateLimitError) as raised:
        client.chat.completions.create(model="fake-n12", messages=HELLO)
    error = raised.value
    assert error.code == "rate_limit_exceeded" and error.type == "rate_limit_error"
    assert "acme/limited/-/openai" in error.message and "2 requests a minute" in error.message
    headers = error.response.headers
    assert 0 < int(headers["retry-after"]) <= 30
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert "x-should-retry" not in headers


def test_anthropic_sees_a_rate_limit_and_what_is_left(stack, limited_keys):
    client = anthropic.Anthropic(base_url=stack.url, api_key=limited_keys["anthropic"], max_retries=0)
    ask = {"model": "fake-n13", "max_tokens": 20, "messages": HELLO}
    with client.messages.stream(**ask) as stream:
        assert stream.get_final_message().content
        headers = stream.response.headers
    assert headers["anthropic-ratelimit-requests-limit"] == "2"
    assert headers["anthropic-ratelimit-requests-remaining"] == "1"
    assert headers["anthropic-ratelimit-tokens-reset"].endswith("Z")
    client.messages.create(**ask)
    with pytest.raises(anthropic.RateLimitError) as raised:
        client.messages.create(**ask)
    error = raised.value
    assert error.body["error"]["type"] == "rate_limit_error"
    assert "2 requests a minute" in error.body["error"]["message"]
    assert 0 < int(error.response.headers["retry-after"]) <= 30


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
def test_a_budget_that_is_used_up_is_a_rate_limit_error_that_is_not_retried(stack, poor_key, dialect):
    if dialect == "openai":
        client = openai.OpenAI(base_url=stack.url + "/v1", api_key=poor_key, max_retries=2)
        with pytest.raises(openai.RateLimitError) as raised:
            client.chat.completions.create(model="fake-n12", messages=HELLO)
        assert raised.value.code == "budget_exceeded" and raised.value.type == "insufficient_quota"
    else:
        client = anthropic.Anthropic(base_url=stack.url, api_key=poor_key, max_retries=2)
        with pytest.raises(anthropic.RateLimitError) as raised:
            client.messages.create(model="fake-n13", max_tokens=20, messages=HELLO)
        assert raised.value.body["error"]["type"] == "rate_limit_error"
    message = str(raised.value)
    assert "acme/poor" in message and "resets in" in message
    assert raised.value.response.headers["x-should-retry"] == "false"
