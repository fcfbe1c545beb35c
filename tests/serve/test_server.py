"""The server as a process: it starts, is abused, loses a process, is told to stop."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest

from scpo_ray.serve.client import ServedRewards
from scpo_ray.serve.items import RewardItem
from tests.serve.letter_server import TOKEN
from tests.serve.made_models import TEXTS, alone, write_culture
from tests.serve.test_batching import until

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


class Server:
    """A module that serves, in a process of its own; its log lines as they come."""

    def __init__(self, module, *arguments):
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "SCPO_TOKEN": TOKEN},
        )
        self.lines = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line)

    def wait_ready(self, count):
        until(lambda: len(self.ready()) >= count or self.process.poll() is not None, 300)
        assert self.process.poll() is None, self.lines
        self.address = self.ready()[0]["address"]

    def logged(self):
        return [json.loads(line) for line in list(self.lines) if line.startswith("{")]

    def ready(self):
        return [line for line in self.logged() if line["message"] == "ready"]

    def post(self, document, timeout=30):
        headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}
        with closing(http.client.HTTPConnection(self.address, timeout=timeout)) as connection:
            connection.request("POST", "/v1/rewards", json.dumps(document), headers)
            with connection.getresponse() as reply:
                return reply.status, json.loads(reply.read())

    def connect(self):
        host, port = self.address.split(":")
        return socket.create_connection((host, int(port)), timeout=10)


@contextmanager
def running(*arguments):
    server = Server(*arguments)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            for process in psutil.Process(server.process.pid).children(recursive=True):
                process.kill()
            server.process.kill()
        server.process.wait()
        server._reader.join()
        server.process.stderr.close()


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_reward_model):
    folder = tmp_path_factory.mktemp("cultures")
    return {
        culture: write_culture(folder / culture, tiny_reward_model, seed=seed, adapters=True)
        for seed, culture in enumerate(("Chile", "Mexico"), start=1)
    }


def items(culture):
    return [
        {
            "messages": [
                *({"role": role, "content": said} for role, said in text.history),
                {"role": "user", "content": text.prompt},
            ],
            "response": text.response,
            "culture": culture,
        }
        for text in TEXTS
    ]


def test_a_served_model_gives_its_own_rewards(folders):
    models = [f"{culture}={folder}" for culture, folder in folders.items()]
    with running("scpo_ray.cli", "serve", *models, "--device", "cpu", "--port", "0") as server:
        server.wait_ready(1)
        for culture, folder in folders.items():
            status, answer = server.post({"items": items(culture)})
            assert status == 200
            found = [row["reward"] for row in answer["rewards"]]
            assert found == pytest.approx(alone(folder), abs=1e-5)
        served = ServedRewards(f"http://{server.address}", TOKEN)
        asked = RewardItem("a kind one", prompt="hi", mix={"Chile": 0.5, "Mexico": 0.5})
        (mixed,) = served.rewards([asked])
        assert (served.cultures, mixed.of) == (
            ("Chile", "Mexico"),
            "0.5 Chile + 0.5 Mexico (linear)",
        )
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
    assert TOKEN not in "".join(server.lines)


def test_a_server_is_patient_loses_a_process_and_ends_in_order():
    with running("tests.serve.letter_server") as server:
        server.wait_ready(2)
        assert_slow_callers_are_cut_off(server)
        assert_a_lost_process_is_replaced(server)
        assert_it_ends_in_order(server)


def assert_slow_callers_are_cut_off(server):
    """A head that does not end is closed, a body that does not come gets 408."""
    with server.connect() as head, server.connect() as body:
        head.sendall(b"GET /health HTTP/1.1\r\nhost: x")
        body.sendall(
            b"POST /v1/rewards HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"authorization: Bearer " + TOKEN.encode() + b"\r\ncontent-length: 100\r\n\r\n{"
        )
        assert head.recv(1_000) == b""
        assert body.recv(1_000).startswith(b"HTTP/1.1 408 ")
    with server.connect() as broken:
        broken.sendall(b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n")
        assert broken.recv(1_000).startswith(b"HTTP/1.1 400 ")


def assert_a_lost_process_is_replaced(server):
    """Where one process is killed the other answers, and a new one takes its place."""
    killed = server.ready()[0]["pid"]
    os.kill(killed, signal.SIGKILL)
    found = []
    for _ in range(20):
        try:
            found.append(server.post({"items": items("Chile")})[0])
        except (OSError, http.client.HTTPException):
            found.append(0)  # It was the dead one's: an error, not silence.
    assert found.count(200) >= 15
    until(lambda: len(server.ready()) == 3, 300)
    assert server.ready()[2]["pid"] != killed
    died = [line for line in server.logged() if "died" in line["message"]]
    assert [line["exit_code"] for line in died] == [-signal.SIGKILL]


def assert_it_ends_in_order(server):
    """SIGTERM: what was taken is answered; then all processes end and the address is free."""
    many = {"items": items("Chile") * 50}
    with ThreadPoolExecutor(4) as threads:
        answers = [threads.submit(server.post, many, 60) for _ in range(4)]
        time.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        assert [answer.result()[0] for answer in answers] == [200] * 4
    assert server.process.wait(60) == 0
    with pytest.raises(OSError):
        server.connect()


def test_models_that_cannot_be_loaded_are_said_and_end_it():
    with running("tests.serve.letter_server", "--fault") as server:
        assert server.process.wait(60) == 2
    assert "models that cannot be used\n  Chile: none" in "".join(server.lines)


def test_processes_end_with_the_one_that_started_them():
    with running("tests.serve.letter_server") as server:
        server.wait_ready(2)
        started = [psutil.Process(line["pid"]) for line in server.ready()]
        server.process.kill()
        gone, left = psutil.wait_procs(started, timeout=30)
        assert left == []
