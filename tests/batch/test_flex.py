"""OpenAI's flex: cheaper, with no promise of room, billed at the tier that the answer says."""
import json
import urllib.request
import uuid

import pytest
from batch_stack import KEY
from waiting import until

# 9 tokens in and 5 out at $1000 and $2000 a million tokens; flex is half of it.
FULL = 9 * 1_000_000 + 5 * 2_000_000


def job(gateway, model, window="1h"):
    body = {"endpoint": "/v1/chat/completions", "completion_window": window,
            "body": {"model": model, "max_tokens": 20, "messages": [{"role": "user", "content": uuid.uuid4().hex}]}}
    request = urllib.request.Request(gateway.url + "/v1/jobs", data=json.dumps(body).encode())
    request.add_header("authorization", f"Bearer {KEY}")
    return json.load(urllib.request.urlopen(request))["id"]


def item(gateway, name, seconds=90):
    query = f"SELECT state, way, rescue, charge, saved, tries FROM job_items WHERE job = '{name}' AND ended_us > 0"
    return until(lambda: gateway.rows(query), seconds)[0]


def tiers(gateway, model):
    """Tiers and charges of what was charged for a model."""
    return gateway.rows(f"SELECT tier, charge FROM attempts WHERE model = '{model}' AND charge > 0")


@pytest.fixture
def own(own_gateway):
    return own_gateway(flex_again_ms=300)


def test_flex_is_taken_and_half_the_price(own):
    model = "fake-n5-in9-x2"
    assert item(own, job(own, model))[:5] == ("succeeded", "flex", 0, FULL // 2, FULL // 2)
    assert until(lambda: tiers(own, model)) == [("flex", FULL // 2)]
    asked = [json.loads(call["body"])["service_tier"] for call in own.called() if call["model"] == model]
    assert asked == ["flex"]


def test_where_there_is_no_room_it_is_tried_again(own):
    state, way, rescue, charge, _, tries = item(own, job(own, "fake-flexbusy2-n5-in9"))
    assert (state, way, rescue, charge) == ("succeeded", "flex", 0, FULL // 2)
    calls = [call for call in own.called() if call["model"] == "fake-flexbusy2-n5-in9"]
    assert [call["status"] for call in calls] == [429, 429, 200]
    assert tries >= 1


def test_it_is_charged_at_the_tier_that_was_served(own):
    model = "fake-noflex-n5-in9"
    assert item(own, job(own, model))[:5] == ("succeeded", "flex", 0, FULL, 0)
    assert until(lambda: tiers(own, model)) == [("standard", FULL)]


def test_when_room_never_comes_the_usual_tier_is_called_in_time(own):
    state, way, rescue, charge, _, _ = item(own, job(own, "fake-flexbusy1000-n5-in9", "8s"))
    assert (state, way, rescue, charge) == ("rescued", "standard", 1, FULL)
