"""Administration end to end: keys, accounts and budgets made by the command line and the admin API while the gateway runs."""
import datetime
import json
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request

import openai
import pytest

from live import BIN, Process

MASTER = "an-admin-key-of-the-tests-0123456789"

POLICY = """
version: 1
deployments:
  - {id: own, provider: oa, model: fake-n4, class: local}
  - {id: cheap, provider: oa, model: fake-n8, class: cheap}
routes:
  - {name: all}
"""

CONFIG = """
listen: [{{address: "127.0.0.1:0"}}]
admin: {{address: "127.0.0.1:0", key: "file:admin-key"}}
trusted_proxies: [127.0.0.1]
providers:
  oa: {{dialect: openai_chat, base_url: "{fake}/v1", credential: "file:credential"}}
accounts:
  acme:
    budgets: [{{limit_dollars: "100", per: month}}]
    teams: {{search: {{}}, sales: {{}}, slow: {{rate_limits: {{requests_per_minute: 1000}}}}}}
unpriced_ceiling_dollars: "0.01"
{more}
"""


class Office:
    """A gateway with an admin key, and ways to reach its admin API."""

    def __init__(self, folder, more=""):
        self.folder = folder
        self.fake_process = Process(BIN / "fake-provider")
        self.fake = self.fake_process.address("listening on ")
        (folder / "credential").write_text("sk-fake-credential")
        (folder / "admin-key").write_text(MASTER)
        (folder / "policy.yaml").write_text(POLICY)
        (folder / "tollgate.yaml").write_text(CONFIG.format(fake=self.fake, more=more))
        self.start()

    def start(self):
        self.gateway = Process(BIN / "tollgate", "serve", "--config", self.folder / "tollgate.yaml")
        self.url = self.gateway.address("listening on ")
        self.admin = self.gateway.address("admin on ")

    def stop(self):
        self.gateway.stop()
        self.fake_process.stop()

    def call(self, method, path, body=None, key=MASTER, **headers):
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if key:
            headers["authorization"] = f"Bearer {key}"
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.admin + path, method=method, data=data, headers=headers)
        try:
            with urllib.request.urlopen(request) as answer:
                text = answer.read()
                return answer.status, json.loads(text) if text else None, answer.headers
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read()), error.headers

    def cli(self, *arguments, key=MASTER, fails=False):
        command = [BIN / "tollgate", *arguments, "--url", self.admin, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, env={"TOLLGATE_ADMIN_KEY": key})
        if fails:
            assert done.returncode != 0
            return done.stderr
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def ask(self, key, model="fake-n4", **headers):
        """A chat completion by the SDK; what it raised, or None."""
        client = openai.OpenAI(base_url=self.url + "/v1", api_key=key, max_retries=0)
        try:
            client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hello"}], max_tokens=5, extra_headers=headers)
        except openai.APIStatusError as error:
            return error

    def make_key(self, name, account="acme/search", **more):
        status, made, _ = self.call("POST", "/admin/v1/keys", {"account": account, "name": name} | more)
        assert status == 201, made
        return made["secret"], made["key"]["id"]


@pytest.fixture(scope="module")
def office(tmp_path_factory):
    office = Office(tmp_path_factory.mktemp("office"))
    yield office
    office.stop()


def until(what, seconds=2.0):
    """Waits for something to become true."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not become true in time"
        time.sleep(0.02)


def later(seconds):
    moment = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=seconds)
    return moment.isoformat().replace("+00:00", "Z")


def quoted(text):
    return urllib.parse.quote(text, safe="")


def test_a_key_lives_from_its_making_to_its_revocation(office):
    made = office.cli("keys", "create", "ci", "--account", "acme/search", "--reason", "for the tests")
    first, key = made["secret"], made["key"]["id"]
    assert office.ask(first) is None
    rotated = office.cli("keys", "rotate", key, "--overlap-s", "1")
    second = rotated["secret"]
    assert office.ask(first) is None and office.ask(second) is None
    until(lambda: office.ask(first) is not None)
    assert isinstance(office.ask(first), openai.AuthenticationError) and "expired" in str(office.ask(first))
    assert office.ask(second) is None
    office.cli("keys", "revoke", key)
    until(lambda: isinstance(office.ask(second), openai.AuthenticationError))
    # It is all in the audit trail, and none of it in the store but for hashes.
    trail = office.cli("audit", "--account", "acme/search/-/ci")
    assert [entry["after"]["revoked"] for entry in trail] == [True, False, False]
    assert trail[-1]["reason"] == "for the tests" and "admin key" in trail[-1]["actor"]
    stored = b"".join(path.read_bytes() for path in office.folder.glob("tollgate.db*"))
    assert first.encode() not in stored and second.encode() not in stored


def test_keys_are_restricted(office):
    secret, key = office.make_key("narrow", models=["fake-n8"], classes=["cheap"])
    assert office.ask(secret, "fake-n8") is None
    assert isinstance(office.ask(secret, "fake-n4"), openai.PermissionDeniedError)
    office.call("PATCH", f"/admin/v1/keys/{key}", {"models": [], "classes": ["cheap"]})
    assert office.ask(secret, "fake-n8") is None
    assert isinstance(office.ask(secret, "fake-n4"), openai.PermissionDeniedError)
    office.call("PATCH", f"/admin/v1/keys/{key}", {"disabled": True})
    assert "switched off" in str(office.ask(secret, "fake-n8"))

    # The tests come from a trusted proxy, so that they can say where they are.
    secret, _ = office.make_key("office", networks=["10.1.0.0/16", "2001:db8::/32"])
    refused = office.ask(secret)
    assert isinstance(refused, openai.PermissionDeniedError) and "127.0.0.1" in str(refused)
    assert office.ask(secret, **{"X-Forwarded-For": "10.1.2.3"}) is None
    assert office.ask(secret, **{"X-Forwarded-For": "2001:db8::7, 127.0.0.1"}) is None
    # What somebody in front of the last untrusted address says counts for nothing.
    assert office.ask(secret, **{"X-Forwarded-For": "10.1.2.3, 192.0.2.1"}) is not None

    secret, _ = office.make_key("brief", expires_at=later(1))
    assert office.ask(secret) is None
    until(lambda: office.ask(secret) is not None)
    status, problem, _ = office.call("POST", "/admin/v1/keys", {"account": "acme/search", "name": "x", "networks": ["10.0.0.0/99"]})
    assert status == 400 and "10.0.0.0/99" in problem["detail"]
    status, problem, _ = office.call("POST", "/admin/v1/keys", {"account": "acme/serch", "name": "x"})
    assert status == 404 and "/admin/v1/accounts" in problem["hint"]


def test_roles(office):
    owner = office.make_key("owner", role="team_owner")[0]
    finance = office.call("POST", "/admin/v1/keys", {"name": "finance", "role": "finance"})[1]["secret"]
    other, other_id = office.make_key("theirs", account="acme/sales")
    _, problem, _ = office.call("GET", f"/admin/v1/keys/{other_id}", key=owner)
    assert problem["code"] == "not_found"
    assert office.call("GET", "/admin/v1/keys?account=acme/sales", key=owner)[0] == 404
    assert office.call("DELETE", f"/admin/v1/keys/{other_id}", key=owner)[0] == 404
    assert office.call("POST", f"/admin/v1/keys/{other_id}/rotate", {}, key=owner)[0] == 404
    assert office.ask(other) is None
    for path in ("keys", "accounts", "budgets", "requests", "alerts", "audit"):
        status, page, _ = office.call("GET", f"/admin/v1/{path}", key=owner)
        accounts = [row["account"] for row in page["data"]]
        assert status == 200 and all(account.startswith("acme/search") for account in accounts), accounts
    usage = office.call("GET", "/admin/v1/usage?by=team", key=owner)[1]["data"]
    assert {row["of"]["team"] for row in usage} <= {"search"}
    everyone = office.call("GET", "/admin/v1/usage?by=team", key=finance)[1]["data"]
    assert {"search", "sales"} <= {row["of"]["team"] for row in everyone}
    request = office.call("GET", "/admin/v1/requests?account=acme/sales&limit=1")[1]["data"][0]["id"]
    assert office.call("GET", f"/admin/v1/requests/{request}", key=finance)[0] == 200
    assert office.call("GET", f"/admin/v1/requests/{request}", key=owner)[0] == 404

    # An owner makes what is below, and neither raises its own budget nor makes administrators.
    assert office.call("POST", "/admin/v1/accounts", {"account": "acme/search/nightly"}, key=owner)[0] == 201
    budget = {"account": "acme/search/nightly", "limit_dollars": "5", "per": "day"}
    assert office.call("POST", "/admin/v1/budgets", budget, key=owner)[0] == 201
    assert office.call("POST", "/admin/v1/budgets", budget | {"account": "acme/search"}, key=owner)[0] == 403
    assert office.call("POST", "/admin/v1/keys", {"name": "root", "role": "admin"}, key=owner)[0] == 403
    assert office.call("POST", "/admin/v1/policies", b"version: 1", key=owner)[0] == 403
    assert office.call("GET", "/metrics", key=owner)[0] == 403

    for method, path, body in [
        ("POST", "/admin/v1/keys", {"account": "acme/search", "name": "no"}),
        ("POST", "/admin/v1/accounts", {"account": "evil"}),
        ("DELETE", f"/admin/v1/keys/{other_id}", None),
        ("PATCH", "/admin/v1/budgets/acme%20month", {"limit_dollars": "1"}),
    ]:
        status, problem, _ = office.call(method, path, body, key=finance)
        assert status == 403 and "finance" in problem["detail"], problem
    # Keys that call models do not administer, keys that administer do not call, and nobody comes in without one.
    assert office.call("GET", "/admin/v1/keys", key=other)[0] == 403
    assert isinstance(office.ask(finance), openai.AuthenticationError)
    status, problem, head = office.call("GET", "/admin/v1/keys", key=None)
    assert status == 401 and head["www-authenticate"] == "Bearer" and problem["hint"]


def test_a_team_is_switched_off(office):
    office.cli("teams", "create", "acme/ops", "--title", "Operations")
    secret, _ = office.make_key("tool", account="acme/ops")
    assert office.ask(secret) is None
    office.cli("teams", "disable", "acme/ops", "--reason", "an incident")
    until(lambda: isinstance(office.ask(secret), openai.AuthenticationError))
    office.cli("teams", "enable", "acme/ops")
    until(lambda: office.ask(secret) is None)
    assert "already" in office.cli("teams", "create", "acme/ops", fails=True)


def test_a_budget_made_at_run_time_is_enforced_increased_and_retired(office):
    office.cli("teams", "create", "acme/thrift")
    secret, _ = office.make_key("tool", account="acme/thrift")
    assert office.ask(secret) is None
    # An answer costs a cent here: this budget pays for none.
    made = office.cli("budgets", "create", "acme/thrift", "--limit", "0.005", "--per", "day")[0]
    assert made["id"] == "acme/thrift day"
    until(lambda: isinstance(office.ask(secret), openai.RateLimitError))
    assert "acme/thrift" in str(office.ask(secret))
    office.cli("budgets", "increase", "acme/thrift day", "--amount", "1", "--until", later(3), "--reason", "quarter end")
    until(lambda: office.ask(secret) is None)
    shown = office.cli("budgets", "show", "acme/thrift day")[0]
    assert shown["increase"]["amount_dollars"] == "1.00" and shown["standing"]["limit_dollars"] == "1.005"
    until(lambda: isinstance(office.ask(secret), openai.RateLimitError), 8)
    office.cli("budgets", "change", "acme/thrift day", "--limit", "10")
    until(lambda: office.ask(secret) is None)
    office.cli("budgets", "change", "acme/thrift day", "--limit", "0.001")
    until(lambda: isinstance(office.ask(secret), openai.RateLimitError))
    office.cli("budgets", "retire", "acme/thrift day")
    until(lambda: office.ask(secret) is None)
    assert "acme month" in office.cli("budgets", "retire", "acme month", fails=True)
    trail = office.cli("audit", "--account", "acme/thrift")
    assert [entry["after"] is None for entry in trail if entry["subject"].startswith("budget")] == [True, False, False, False, False]


def test_limits_made_at_run_time_hold_and_survive(office):
    secret = office.cli("keys", "create", "paced", "--account", "acme/search", "--requests-per-minute", "2")["secret"]
    assert office.ask(secret) is None and office.ask(secret) is None
    refused = office.ask(secret)
    assert isinstance(refused, openai.RateLimitError) and "acme/search/-/paced" in str(refused)
    assert refused.response.headers["x-ratelimit-limit-requests"] == "2" and int(refused.response.headers["retry-after"]) >= 1
    key, = [key for key in office.cli("keys", "list", "--account", "acme/search") if key["name"] == "paced"]
    assert key["rate_limits"] == {"requests_per_minute": 2}
    changed, = office.cli("keys", "change", key["id"], "--requests-per-minute", "none", "--concurrency", "5")
    assert changed["rate_limits"] == {"concurrency": 5} and office.ask(secret) is None

    # A team's limit holds for all its keys together; the one of a configuration goes before.
    one, _ = office.make_key("one", "acme/sales")
    two, _ = office.make_key("two", "acme/sales")
    shown, = office.cli("teams", "change", "acme/sales", "--requests-per-minute", "2", "--reason", "a campaign")
    assert shown["rate_limits"] == {"requests_per_minute": 2}
    assert office.ask(one) is None and office.ask(two) is None
    assert isinstance(office.ask(one), openai.RateLimitError) and isinstance(office.ask(two), openai.RateLimitError)
    assert office.cli("audit", "--account", "acme/sales")[0]["after"]["rate_limits"]["requests_per_minute"] == 2
    office.gateway.stop()
    office.start()
    assert office.call("GET", "/admin/v1/accounts/acme%2Fsales")[1]["rate_limits"] == {"requests_per_minute": 2}
    assert office.ask(one) is None and office.ask(two) is None
    assert isinstance(office.ask(one), openai.RateLimitError), "the limit is there after a restart, with a fresh minute"
    office.cli("teams", "change", "acme/sales", "--requests-per-minute", "none")
    assert office.ask(one) is None

    status, problem, _ = office.call("PATCH", "/admin/v1/accounts/acme%2Fslow", {"rate_limits": {"requests_per_minute": 3}})
    assert (status, problem["code"]) == (409, "declared_by_configuration"), problem
    status, problem, _ = office.call("PATCH", "/admin/v1/accounts/acme%2Fsales", {"rate_limits": {"concurrency": 0}})
    assert status == 400 and "0 lets nothing through" in problem["detail"], problem
    assert "`none`" in office.cli("teams", "change", "acme/sales", "--concurrency", "few", fails=True)


def test_a_retry_is_answered_as_the_first_was(office):
    new = {"account": "acme/search", "name": "once"}
    status, first, _ = office.call("POST", "/admin/v1/keys", new, idempotency_key="a1")
    again, second, head = office.call("POST", "/admin/v1/keys", new, idempotency_key="a1")
    assert (status, again) == (201, 201) and first == second and head["idempotency-replayed"] == "true"
    assert office.ask(first["secret"]) is None
    status, problem, _ = office.call("POST", "/admin/v1/keys", new | {"name": "twice"}, idempotency_key="a1")
    assert status == 409 and problem["code"] == "idempotency_conflict"
    # Another's key of the same text is another key; a refusal is an answer too.
    admin = office.call("POST", "/admin/v1/keys", {"name": "second-admin", "role": "admin"})[1]["secret"]
    for _ in range(2):
        status, problem, _ = office.call("POST", "/admin/v1/keys", new, key=admin, idempotency_key="a1")
        assert status == 409 and problem["code"] == "already_exists"
    stored = b"".join(path.read_bytes() for path in office.folder.glob("tollgate.db*"))
    assert first["secret"].encode() not in stored


def test_a_thousand_keys_by_page(office):
    office.call("POST", "/admin/v1/accounts", {"account": "crowd"})
    ids = {office.make_key(f"k{number}", account="crowd")[1] for number in range(1000)}
    seen, cursor, pages = [], "", 0
    while cursor is not None:
        status, page, _ = office.call("GET", f"/admin/v1/keys?account=crowd&limit=170&cursor={quoted(cursor)}")
        assert status == 200, page
        seen += [key["id"] for key in page["data"]]
        cursor, pages = page.get("next_cursor"), pages + 1
    assert (pages, len(seen)) == (6, 1000) and set(seen) == ids and seen == sorted(seen, reverse=True)
    assert len(office.cli("keys", "list", "--account", "crowd", "--rows", "700")) == 700


def test_the_document_tells_what_there_is(office):
    _, document, _ = office.call("GET", "/admin/v1/openapi.json")
    assert document["openapi"].startswith("3.1")
    for path, operations in document["paths"].items():
        filled = path.replace("{id}", "none").replace("{account}", "none")
        for method in operations:
            assert office.call(method.upper(), filled, key=None)[0] == 401
        status, problem, head = office.call("PUT", filled)
        assert status == 405 and set(head["allow"].lower().split(", ")) == set(operations), problem
        if "get" in operations and "{" not in path:
            assert office.call("GET", filled)[0] == 200
    status, problem, head = office.call("GET", "/admin/v1/nothing")
    assert status == 404 and head["content-type"] == "application/problem+json" and "openapi" in problem["hint"]
    status, problem, _ = office.call("POST", "/admin/v1/keys", {"acount": "acme"})
    assert status == 400 and "acount" in problem["detail"]
    status, problem, _ = office.call("PATCH", "/admin/v1/budgets/acme%20month", [None, None])
    assert status == 400 and "JSON object" in problem["detail"]


def test_everything_is_there_after_a_restart(office):
    secret, _ = office.make_key("lasting")
    office.call("POST", "/admin/v1/budgets", {"account": "acme/sales", "limit_dollars": "7", "per": "month"})
    office.gateway.stop()
    office.start()
    assert office.ask(secret) is None
    shown = office.call("GET", f"/admin/v1/budgets/{quoted('acme/sales month')}")[1]
    assert (shown["source"], shown["standing"]["limit_dollars"]) == ("api", "7.00")
