"""The application of Ray Serve on two nodes, one of which is killed."""

import http.client
import json
from contextlib import closing

import pytest

from tests.launch.clusters import one_node
from tests.serve.made_models import TEXTS, alone, write_culture
from tests.serve.test_batching import until

pytest.importorskip("grpc_reflection", reason="needs Ray Serve: pip install scpo-ray[serve]")

TOKEN = "a-token-of-the-tests"
PORT = 18_431

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.filterwarnings("ignore")]


def asked(method, route, body=None, token=TOKEN):
    with closing(http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)) as connection:
        headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
        connection.request(method, route, None if body is None else json.dumps(body), headers)
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read() or b"null")


def test_an_application_answers_on_while_a_node_is_lost(tmp_path, tiny_reward_model):
    import ray
    from ray import serve

    from scpo_ray.serve.ray_app import AppArguments, app

    folder = write_culture(tmp_path / "Chile", tiny_reward_model, seed=1, adapters=True)
    expected = pytest.approx(alone(folder)[:2], abs=1e-5)
    items = [{"prompt": text.prompt, "response": text.response} for text in TEXTS[:2]]
    # The head has room for the proxy and one replica; the other needs a second node.
    with one_node() as cluster:
        second = cluster.add_node(num_cpus=1)
        ray.init(
            address=cluster.address,
            runtime_env={"env_vars": {"SCPO_TOKEN": TOKEN}},
            log_to_driver=False,
            logging_level="ERROR",
        )
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": PORT})
            arguments = AppArguments(
                models=f"Chile={folder}", min_replicas=2, max_replicas=2, num_cpus=0.6
            )
            serve.run(app(arguments), name="scpo", route_prefix="/")
            assert asked("GET", "/v1/cultures", token="wrong-token-of-the-tests")[0] == 401
            status, answer = asked("POST", "/v1/rewards", {"items": items})
            assert status == 200
            assert [row["reward"] for row in answer["rewards"]] == expected

            cluster.remove_node(second, allow_graceful=False)

            def answers():
                status, answer = asked("POST", "/v1/rewards", {"items": items})
                return status == 200 and [r["reward"] for r in answer["rewards"]] == expected

            until(answers, 60)
            # What still went to the lost replica is an error; from then on it is known.
            until(lambda: all(answers() for _ in range(20)), 60)
        finally:
            serve.shutdown()
            ray.shutdown()
