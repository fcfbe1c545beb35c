"""The routes, without models: what is asked, what is answered, what is refused."""

import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient

from scpo_ray.records import InputError
from scpo_ray.serve.app import make_app
from scpo_ray.serve.logs import JsonLines
from scpo_ray.serve.measures import Measures
from scpo_ray.serve.service import Service, Source
from scpo_ray.settings.serve import ServeConfig
from tests.serve.double import LetterRewards, letter_service, worth
from tests.serve.test_batching import until

TOKEN = "a-token-of-the-tests"
CHAT = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nccc<|im_end|>\n"


@pytest.fixture(scope="module")
def client():
    """Of a server on this machine that asks for no token."""
    service = letter_service(gather_ms=0, max_items=50, max_characters=100, max_body_bytes=20_000)
    with TestClient(make_app(service, token=None), base_url="http://localhost") as client:
        yield client


def item(**changed):
    fields = {"prompt": "hi", "response": "ccc", "culture": "Chile", **changed}
    return {name: value for name, value in fields.items() if value is not None}


def expected(culture="Chile", said="hi ccc"):
    return pytest.approx(worth(said, culture))


def test_items_get_their_own_rewards_in_every_unit(client):
    mix = {"Chile": 0.25, "Mexico": 0.75}
    turns = [{"role": "user", "content": "hi"}]
    items = [item(), item(culture="Mexico"), item(culture=None, mix=mix, how="people")]
    items.append(item(prompt=None, messages=turns))

    answer = client.post("/v1/rewards", json={"items": items}).json()

    chile, mexico = worth("hi ccc", "Chile"), worth("hi ccc", "Mexico")
    mixed = 0.25 * chile + 0.75 * mexico
    assert [row["reward"] for row in answer["rewards"]] == pytest.approx(
        [chile, mexico, mixed, chile]
    )
    assert answer["rewards"][0] == {
        "of": "Chile",
        "reward": chile,
        "standardised": chile / 2,
        "probability": chile / (1 + chile),
        "interval": [chile - 1, chile + 1],
        "truncated": False,
    }
    assert answer["rewards"][2]["of"] == "0.25 Chile + 0.75 Mexico (people)"
    assert answer["models"] == {"Chile": "chile:1", "Mexico": "mexico:1"}


OURS = "/v1/rewards"


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"items": [item(culture="Chle")]}, 422, "items.0.culture = 'Chle': no such culture; near"),
        ({"items": [item(culture=None)]}, 422, "items.0.culture: must be given, or mix"),
        (
            {"items": [item(mix={"Chile": 1.0})]},
            422,
            "items.0.culture = 'Chile': give a culture or",
        ),
        (
            {"items": [item(), item(culture=None, mix={"Chile": 0.5})]},
            422,
            "items.1.mix: weights must sum to 1, got 0.5",
        ),
        (
            {"items": [item(culture=None, mix={"Chile": -1, "Mexico": 2})]},
            422,
            "items.0.mix.Chile = -1: must not be negative",
        ),
        ({"items": [item(culture=None, mix={})]}, 422, "items.0.mix"),
        ({"items": [item(culture=None, mix={"Chile": True})]}, 422, "items.0.mix.Chile: must be"),
        ({"items": [item(how="best")]}, 422, "items.0.how: must be 'linear', 'people' or 'worst'"),
        ({"items": []}, 422, "items: must hold at least one"),
        ({}, 422, "items: must be there"),
        ([], 422, "the body: must be a valid dictionary"),
        ({"items": [item(), 3]}, 422, "items.1: must be"),
        ({"items": [item(response=3)]}, 422, "items.0.response: must be a valid string"),
        ({"items": [item(prompt=None)]}, 422, "items.0.prompt: give a prompt or messages"),
        ({"items": [item(messages=[])]}, 422, "items.0.messages: must hold at least one"),
        ({"items": [item(culturel="x")]}, 422, "items.0.culturel: no such field"),
        ({"items": [item()] * 51}, 413, "at most 50 items, got 51"),
        ({"items": [item(), item(prompt="p" * 98)]}, 422, "items.1: must have at most 100 char"),
        ({"items": [item(prompt="p" * 20_000)]}, 413, "the body must be at most 20000 bytes"),
        ({"items": [item(prompt="\ud800")]}, 422, "not UTF-8 (half a character)"),
    ],
    ids=str,
)
def test_a_request_of_the_wrong_kind_gets_one_clear_error(client, body, status, said):
    content = json.dumps(body, ensure_ascii=True)

    answer = client.post(OURS, content=content, headers={"content-type": "application/json"})

    assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert said in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


@pytest.mark.parametrize(
    ("content", "headers", "status", "said"),
    [
        (b"{", {}, 422, "the body is not JSON"),
        (b"", {}, 422, "the body: must be there"),
        (b"[" * 19_000, {}, 400, "nested too deeply"),
        (b'{"items": "\xff"}', {}, 400, "not UTF-8"),
        (b'{"items": [{"response": NaN}]}', {}, 422, "items.0.response: must be a valid string"),
        (b"{}", {"content-type": "text/plain"}, 415, "Content-Type: application/json"),
        (b"{}", {"content-encoding": "gzip"}, 415, "must not be compressed"),
        (b"{}", {"content-length": "99999999"}, 413, "at most 20000 bytes"),
    ],
    ids=["brace", "empty", "deep", "bytes", "nan", "kind", "gzip", "length"],
)
def test_a_body_that_is_no_json_gets_one_clear_error(client, content, headers, status, said):
    headers = {"content-type": "application/json"} | headers

    answer = client.post(OURS, content=content, headers=headers)

    assert answer.status_code == status
    assert said in answer.json()["error"]


def test_a_body_that_never_says_its_length_is_cut_off(client):
    endless = (b"x" * 1_000 for _ in range(100))

    answer = client.post(OURS, content=endless, headers={"content-type": "application/json"})

    assert answer.status_code == 413


def test_a_body_of_many_faults_is_refused_at_the_first(client):
    answer = client.post(OURS, content=b'{"items": [' + b"1," * 9_000 + b"1]}", headers=JSON)

    assert answer.json()["error"].startswith("items.0: must be")


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    "body",
    [
        {"query": [CHAT], "prompts": [CHAT.partition("ccc")[0]], "labels": ["Chile"]},
        {"query": ["hi ccc</s>"], "prompts": ["hi"], "labels": ['{"culture": "Chile"}']},
        {"query": [CHAT], "prompts": None, "labels": [{"culture": "Chile", "answer": 4}]},
    ],
    ids=["rendered", "plain", "without prompts"],
)
def test_openrlhf_gets_what_its_client_reads(client, body):
    answer = client.post("/v1/openrlhf", json=body).json()

    assert answer == {
        "rewards": [expected()],
        "scores": [expected()],
        "extra_logs": {"reward": [expected()]},
    }


def test_openrlhf_may_name_the_mixture_and_the_scale_in_its_url(client):
    body = {"query": ["hi ccc"], "prompts": ["hi"], "labels": [""]}
    url = "/v1/openrlhf?culture=Chile=0.5,Mexico=0.5&scale=standardised"

    answer = client.post(url, json=body).json()

    mixed = 0.5 * worth("hi ccc", "Chile") + 0.5 * worth("hi ccc", "Mexico")
    assert answer["rewards"] == [pytest.approx(mixed / 2)]


def test_llama_factory_gets_what_its_client_reads(client):
    body = {"model": "model", "messages": [CHAT, CHAT]}

    answer = client.post("/v1/score/evaluation?culture=Chile", json=body).json()

    assert answer["scores"] == [expected(), expected()]
    assert answer["object"] == "score"


@pytest.mark.parametrize(
    "body",
    [
        {"input": CHAT},
        {"input": [CHAT], "use_activation": False, "add_special_tokens": True},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ccc"}]},
    ],
    ids=["text", "list", "messages"],
)
def test_vllm_classifies_and_pools(client, body):
    body = {"model": "Chile", **body}

    classified = client.post("/classify", json=body).json()
    pooled = client.post("/pooling", json={**body, "task": "classify"}).json()

    (row,) = classified["data"]
    assert row == {"index": 0, "label": "LABEL_0", "probs": [expected()], "num_classes": 1}
    assert pooled["data"] == [{"index": 0, "object": "pooling", "data": [expected()]}]
    assert (classified["object"], classified["model"]) == ("list", "Chile")


def test_sglang_is_told_from_vllm_by_its_text(client):
    one = client.post("/classify?culture=Chile", json={"text": CHAT}).json()
    many = client.post("/classify", json={"model": "Mexico", "text": [CHAT, CHAT]}).json()

    assert one["embedding"] == [expected()]
    assert [row["embedding"] for row in many] == [[expected("Mexico")], [expected("Mexico")]]


@pytest.mark.parametrize(
    ("route", "body", "said"),
    [
        ("/classify", {"model": "Chile"}, "input or messages"),
        ("/classify", {"model": "Chle", "text": CHAT}, "model = 'Chle': no such culture"),
        ("/classify", {"text": CHAT}, "model: names no culture, nor does ?culture="),
        ("/classify", {"model": "Chile", "text": "plain"}, "text: no template's marks"),
        ("/classify", {"model": "Chile", "input": [CHAT, "plain"]}, "input.1: no template's marks"),
        ("/classify", {"model": "Chile", "input": [1, 2]}, "must be a valid string"),
        (
            "/pooling",
            {"model": "Chile", "input": CHAT, "task": "embed"},
            "task: must be 'classify'",
        ),
        ("/v1/score/evaluation", {"messages": [CHAT]}, "model: names no culture"),
        ("/v1/openrlhf", {"query": ["a"], "prompts": []}, "query.0: no template's marks"),
        ("/v1/openrlhf", {"query": ["a"], "prompts": ["a", "b"]}, "prompts: must be as many as"),
        ("/v1/openrlhf", {"query": [CHAT], "labels": [3]}, "labels.0: must name a culture"),
        ("/v1/openrlhf", {"query": [CHAT], "labels": ["{"]}, "labels.0: begins as a JSON object"),
        ("/v1/openrlhf?scale=big", {"query": [CHAT]}, "scale: must be 'raw', 'standardised'"),
    ],
    ids=str,
)
def test_a_tools_request_of_the_wrong_kind_gets_one_clear_error(client, route, body, said):
    answer = client.post(route, json=body)

    assert answer.status_code == 422
    assert said in answer.json()["error"]


def test_one_culture_needs_no_name():
    service = letter_service(LetterRewards(["Chile"]))
    with TestClient(make_app(service, token=None), base_url="http://localhost") as client:
        ours = client.post(OURS, json={"items": [item(culture=None)]}).json()
        theirs = client.post("/classify", json={"text": CHAT}).json()

    assert ours["rewards"][0]["reward"] == theirs["embedding"][0] == expected()


def test_a_server_says_what_it_serves_and_counts(client):
    client.post(OURS, json={"items": [item()]})

    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready", "waiting_items": 0}
    assert client.get("/v1/cultures").json()["cultures"][0] == {
        "culture": "Chile",
        "model": "chile:1",
    }
    numbers = client.get("/metrics").text
    assert 'scpo_requests_total{route="/v1/rewards",status="200"}' in numbers
    assert 'scpo_items_total{culture="Chile"}' in numbers
    assert set(client.get("/openapi.json").json()["paths"]) >= {OURS, "/classify", "/pooling"}
    assert client.get("/docs").status_code == 200
    assert client.get("/nothing").json() == {"error": "Not Found"}
    assert client.get(OURS).status_code == 405


@pytest.fixture(scope="module")
def guarded():
    with TestClient(make_app(letter_service(), token=TOKEN)) as client:
        yield client


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({}, "missing token"),
        ({"authorization": "Bearer "}, "missing token"),
        ({"authorization": "Bearer wrong"}, "wrong token"),
        ({"authorization": f"Token {TOKEN}"}, "missing token"),
        ({"authorization": "Basic %%%"}, "missing token"),
        ({"authorization": b"Bearer \xff"}, "wrong token"),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "route", ["/metrics", "/v1/cultures", "/docs", "/openapi.json", "/nothing"]
)
def test_without_the_token_nothing_is_said(guarded, headers, said, route):
    answer = guarded.get(route, headers=headers)

    assert (answer.status_code, answer.headers["www-authenticate"][:6]) == (401, "Bearer")
    assert said in answer.json()["error"]


def test_with_the_token_all_is(guarded):
    shown = {"authorization": f"Bearer {TOKEN}"}

    assert guarded.get("/v1/cultures", headers=shown).status_code == 200
    # As tools send it for http://user:TOKEN@host.
    assert guarded.get("/v1/cultures", auth=("scpo", TOKEN)).status_code == 200
    assert guarded.get("/health").status_code == guarded.get("/ready").status_code == 200


def test_without_a_token_only_this_machines_names_are_answered(client):
    assert client.get("/health", headers={"host": "evil.example:8000"}).status_code == 421
    assert client.get("/health", headers={"host": "[::1]:8000"}).status_code == 200


def test_a_full_server_says_when_to_come_again():
    scorer = LetterRewards()
    service = letter_service(scorer, max_waiting_items=2, gather_ms=0)
    scorer.gate.clear()
    app = make_app(service, token=None)
    with TestClient(app, base_url="http://localhost") as client, ThreadPoolExecutor(1) as threads:
        held = threads.submit(client.post, OURS, json={"items": [item()] * 2})
        until(lambda: service.waiting == 2)
        refused = client.post(OURS, json={"items": [item()]})
        unready = client.get("/ready")
        scorer.gate.set()

        assert (refused.status_code, unready.status_code) == (429, 503)
        assert int(refused.headers["retry-after"]) >= 1
        assert held.result(10).status_code == 200


def test_a_fault_of_the_server_says_so_and_no_more(client, caplog):
    quiet = TestClient(client.app, base_url="http://localhost", raise_server_exceptions=False)

    answer = quiet.post(OURS, json={"items": [item(response="bad")]})

    assert answer.status_code == 500
    assert answer.json() == {"error": "a fault of the server; its log has the traceback"}
    assert "a fault in the model's code" in caplog.text


def test_a_request_is_one_line_of_json_without_its_texts(client, caplog):
    with caplog.at_level(logging.INFO, "scpo_ray"):
        client.post(OURS, json={"items": [item()]}, headers={"x-request-id": "mine-1"})

    (record,) = [record for record in caplog.records if record.message == "request"]
    line = json.loads(JsonLines().format(record))
    assert line["request_id"] == "mine-1"
    assert (line["status"], line["items"], line["cultures"]) == (200, 1, ["Chile"])
    assert "ccc" not in json.dumps(line)


def test_models_that_moved_are_loaded_anew_and_what_fails_changes_nothing(caplog):
    named = {"Chile": "chile:1"}
    loaded = []

    def load(models):
        if models["Chile"] == "chile:2":
            raise InputError("chile:2: damaged")
        loaded.append(dict(models))
        return LetterRewards(["Chile"], bonus=float(models["Chile"][-1]))

    service = Service(Source(lambda: dict(named), load), ServeConfig(), Measures())
    with TestClient(make_app(service, token=None), base_url="http://localhost") as client:
        rewards = []
        for model, moved in (("chile:1", False), ("chile:2", False), ("chile:3", True)):
            named["Chile"] = model
            assert service.reload_if_moved() is moved
            answer = client.post(OURS, json={"items": [item()]}).json()
            rewards.append((answer["rewards"][0]["reward"], answer["models"]["Chile"]))

    value = worth("hi ccc", "Chile")
    assert rewards == [
        (pytest.approx(value + 1), "chile:1"),
        (pytest.approx(value + 1), "chile:1"),
        (pytest.approx(value + 3), "chile:3"),
    ]
    assert loaded == [{"Chile": "chile:1"}, {"Chile": "chile:3"}]
    assert "the models stay as they are: chile:2: damaged" in caplog.text


def test_many_clients_at_once_get_each_their_own_answer():
    service = letter_service(gather_ms=5)
    texts = [f"{'c' * (n % 7)} {n}" for n in range(60)]
    with TestClient(make_app(service, token=None), base_url="http://localhost") as client:
        barrier = threading.Barrier(12)

        def ask(text):
            barrier.wait(10)
            return client.post(OURS, json={"items": [item(response=text)]}).json()

        with ThreadPoolExecutor(12) as threads:
            answers = list(threads.map(ask, texts))

    assert [answer["rewards"][0]["reward"] for answer in answers] == pytest.approx(
        [worth(f"hi {text}", "Chile") for text in texts]
    )
