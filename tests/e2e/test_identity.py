"""Whom the gateway believes and whom it tells: tokens of an identity provider in place of keys, and alerts to a webhook."""
import base64
import hashlib
import hmac
import http.server
import json
import subprocess
import threading
import time

import openai
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from live import BIN
from test_admin import Office, until


class Server:
    """An HTTP server of the test's own; `answer(path, headers, body)` gives status and JSON."""

    def __init__(self, answer):
        class Handler(http.server.BaseHTTPRequestHandler):
            def reply(self):
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                status, document = answer(self.path, self.headers, body)
                text = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = reply

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


def b64(data):
    data = data if isinstance(data, bytes) else json.dumps(data).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def number(value):
    return b64(value.to_bytes((value.bit_length() + 7) // 8, "big"))


class Issuer:
    """An identity provider: its keys by id, and tokens signed with them."""

    def __init__(self):
        self.keys, self.fetches, self.away = {}, 0, False
        self.add("one", rsa.generate_private_key(public_exponent=65537, key_size=2048))
        self.server = Server(self.answer)
        self.url = self.server.url

    def add(self, kid, private):
        self.keys[kid] = private

    def answer(self, path, _headers, _body):
        if self.away:
            return 500, {}
        if path == "/.well-known/openid-configuration":
            return 200, {"issuer": self.url, "jwks_uri": self.url + "/jwks"}
        self.fetches += 1
        # A symmetric key in the list is to be left alone.
        listed = [{"kty": "oct", "kid": "shared", "k": b64(b"everybody knows this secret")}]
        for kid, private in self.keys.items():
            public = private.public_key().public_numbers()
            if isinstance(private, rsa.RSAPrivateKey):
                listed.append({"kty": "RSA", "kid": kid, "use": "sig", "n": number(public.n), "e": number(public.e)})
            else:
                x, y = (b64(part.to_bytes(32, "big")) for part in (public.x, public.y))
                listed.append({"kty": "EC", "crv": "P-256", "kid": kid, "x": x, "y": y})
        return 200, {"keys": listed}

    def token(self, kid="one", private=None, head=None, **claims):
        now = int(time.time())
        claims = {"iss": self.url, "aud": "tollgate", "sub": "ann", "team": "search", "exp": now + 600} | claims
        claims = {name: value for name, value in claims.items() if value is not None}
        private = private or self.keys[kid]
        is_rsa = isinstance(private, rsa.RSAPrivateKey)
        signed = b64({"alg": "RS256" if is_rsa else "ES256", "kid": kid} | (head or {})) + "." + b64(claims)
        if is_rsa:
            signature = private.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        else:
            r, s = decode_dss_signature(private.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
            signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")
        return f"{signed}.{b64(signature)}"


@pytest.fixture(scope="module")
def issuer():
    issuer = Issuer()
    yield issuer
    issuer.server.stop()


SECRET = "whsec_" + base64.b64encode(b"a secret of the webhook's tests").decode()


class Receiver:
    """Takes alerts, but for the first one it sees."""

    def __init__(self):
        self.refused, self.taken = [], []
        self.server = Server(self.answer)

    def answer(self, _path, headers, body):
        identity, moment = headers["webhook-id"], headers["webhook-timestamp"]
        key = base64.b64decode(SECRET.removeprefix("whsec_"))
        tag = hmac.new(key, f"{identity}.{moment}.".encode() + body, hashlib.sha256).digest()
        is_signed = headers["webhook-signature"] == "v1," + base64.b64encode(tag).decode() and abs(time.time() - int(moment)) < 60
        alert = json.loads(body)
        if not self.refused:
            self.refused.append(alert)
            return 503, {}
        self.taken.append((is_signed, alert))
        return 200, {}


@pytest.fixture(scope="module")
def receiver():
    receiver = Receiver()
    yield receiver
    receiver.server.stop()


@pytest.fixture(scope="module")
def office(tmp_path_factory, issuer, receiver):
    folder = tmp_path_factory.mktemp("identity")
    (folder / "webhook-secret").write_text(SECRET)
    office = Office(folder, f"""
oidc:
  - {{issuer: "{issuer.url}", audiences: [tollgate, other], org: acme, team_claim: team, models: [fake-n4]}}
alerts: {{webhook_url: "{receiver.server.url}/alerts", secret: "file:webhook-secret"}}
""")
    yield office
    office.stop()


def refusal(office, token):
    error = office.ask(token)
    assert isinstance(error, openai.AuthenticationError), error
    return str(error)


def test_a_token_stands_for_an_account(office, issuer):
    assert office.ask(issuer.token()) is None
    assert office.ask(issuer.token(aud=["elsewhere", "other"], sub="a/b")) is None
    listed = office.call("GET", "/admin/v1/requests?account=acme/search")[1]["data"]
    assert {row["account"] for row in listed} == {"acme/search/-/ann", "acme/search/-/a%2Fb"}
    assert isinstance(office.ask(issuer.token(), model="fake-n8"), openai.PermissionDeniedError)
    # The budgets and the switch of its team hold for it.
    office.cli("teams", "disable", "acme/sales")
    until(lambda: office.ask(issuer.token(team="sales")) is not None)
    office.cli("teams", "enable", "acme/sales")


def test_tokens_that_are_not_believed(office, issuer):
    now = int(time.time())
    assert "expired" in refusal(office, issuer.token(exp=now - 60))
    assert office.ask(issuer.token(exp=now - 5)) is None, "within the leeway"
    assert "not valid yet" in refusal(office, issuer.token(nbf=now + 300))
    assert "audience" in refusal(office, issuer.token(aud="elsewhere"))
    assert "issuer" in refusal(office, issuer.token(iss="http://127.0.0.1:9/other"))
    assert "`team`" in refusal(office, issuer.token(team=None))
    for claims in ({"exp": None}, {"exp": str(now + 600)}, {"nbf": "soon"}, {"aud": None}):
        refusal(office, issuer.token(**claims))
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    assert "signature" in refusal(office, issuer.token(private=stranger))
    good = issuer.token()
    head, claims, signature = good.split(".")
    assert office.ask(good) is None
    forged = b64(json.loads(base64.urlsafe_b64decode(claims + "==")) | {"team": "sales"})
    assert "signature" in refusal(office, f"{head}.{forged}.{signature}")
    # No signature, and one by a secret that is a public key, or that the key set tells.
    refusal(office, f"{b64({'alg': 'none'})}.{claims}.")
    public = issuer.keys["one"].public_key().public_numbers()
    for kid, secret in (("one", number(public.n).encode()), ("shared", b"everybody knows this secret")):
        signed = f"{b64({'alg': 'HS256', 'kid': kid})}.{claims}"
        tag = hmac.new(secret, signed.encode(), hashlib.sha256).digest()
        refusal(office, f"{signed}.{b64(tag)}")
    assert "cannot be read" in refusal(office, "ey.no.token")


def test_a_new_key_of_the_issuer_is_fetched_and_an_issuer_that_is_away_does_no_harm(office, issuer):
    issuer.add("two", ec.generate_private_key(ec.SECP256R1()))
    # One fetch in five seconds, whatever strangers send.
    until(lambda: office.ask(issuer.token("two")) is None, 8)
    fetched = issuer.fetches
    for turn in range(20):
        assert "does not have" in refusal(office, issuer.token("one", head={"kid": f"strange{turn}"}))
    assert issuer.fetches - fetched <= 1
    issuer.away = True
    time.sleep(5.1)
    refusal(office, issuer.token("one", head={"kid": "stranger"}))
    assert office.ask(issuer.token("two", sub="bob")) is None and office.ask(issuer.token("one", sub="bob")) is None
    issuer.away = False


def test_an_alert_is_told_once_with_a_signature(office, receiver):
    office.cli("teams", "create", "acme/loud")
    secret, _ = office.make_key("tool", account="acme/loud")
    office.cli("budgets", "create", "acme/loud", "--limit", "0.03", "--per", "day", "--alert", "30", "--alert", "60")
    for _ in range(3):
        office.ask(secret)
    until(lambda: len(receiver.taken) >= 2, 15)
    # A restart tells nothing again.
    office.gateway.stop()
    office.start()
    office.ask(secret)
    time.sleep(3)
    assert all(is_signed for is_signed, _ in receiver.taken)
    told = sorted(alert["data"]["threshold_percent"] for _, alert in receiver.taken)
    assert told == [30, 60] and len(receiver.refused) == 1
    alert = receiver.taken[0][1]
    assert alert["type"] == "budget.threshold_passed" and alert["data"]["account"] == "acme/loud"
    assert receiver.refused[0]["id"] in {alert["id"] for _, alert in receiver.taken}
    listed = office.call("GET", "/admin/v1/alerts?account=acme/loud")[1]["data"]
    assert len(listed) == 2 and all("delivered_at" in row for row in listed)


def test_settings_that_open_doors_are_refused(tmp_path):
    (tmp_path / "tollgate.yaml").write_text("""
alerts: {webhook_url: "https://hooks.example.com"}
oidc:
  - {issuer: "login.example.com", audiences: [], org: a, org_claim: b}
""")
    done = subprocess.run([BIN / "tollgate", "check", "--config", tmp_path / "tollgate.yaml"], capture_output=True, text=True)
    assert done.returncode != 0
    for mistake in ("no secret to sign with", "must begin with http", "tokens for anybody", "one of `org` and `org_claim`"):
        assert mistake in done.stderr, done.stderr
