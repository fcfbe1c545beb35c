"""The reward server against others that could give the same numbers, and under load.

    python benchmarks/serving.py BACKBONE FOLDER [--seconds 10] [--minutes 3]

BACKBONE: a Hugging Face folder with a small encoder (`make backbone`: models/all-minilm-l6-v2).
Heads and adapters are drawn, not trained: what is measured is speed and whether answers are right.
Every contender serves the same model on the same machine in the same run, one after the other.
"""

import argparse
import http.client
import json
import logging
import os
import platform
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path

import numpy as np
import psutil
import torch

from scpo_ray.evaluation.scales import scale_of
from scpo_ray.models.adapters import merged_adapters
from scpo_ray.models.export import save_reward_model
from scpo_ray.models.loading import load_reward_model
from scpo_ray.models.rendering import load_renderer
from scpo_ray.models.scoring import score_texts
from scpo_ray.models.tiny import make_tiny_backbone
from scpo_ray.records import Text
from scpo_ray.serve.core import CultureRewards
from scpo_ray.serve.items import RewardItem
from scpo_ray.settings.model import LoraConfig, ModelConfig
from scpo_ray.storage.scale_file import save_scale

CULTURES = tuple(f"culture-{n}" for n in range(8))
WORDS = (
    "people often say that what matters most at home is time with family and friends while work "
    "and money come later but others would rather travel read cook or talk about music politics "
    "religion health school children neighbours weather food history art and the news of the day"
).split()
TOLERANCE = 1e-4


# ---- models and texts ------------------------------------------------------------------------


def make_texts(number: int, seed: int) -> list[Text]:
    """Prompts of 5 to 30 words and responses of 10 to 120, as people write to a chat model."""
    chance = random.Random(seed)

    def said(low: int, high: int) -> str:
        return " ".join(chance.choices(WORDS, k=chance.randint(low, high)))

    return [Text((), said(5, 30), said(10, 120)) for _ in range(number)]


def make_models(backbone: Path, folder: Path) -> tuple[Path, dict[str, Path]]:
    """A whole model, and adapters of every culture on one base; made once."""
    base, whole = folder / "base", folder / "whole"
    adapters = {culture: folder / culture for culture in CULTURES}
    if whole.is_dir():
        return whole, adapters
    config = ModelConfig(path=str(backbone), max_length=256, new_head=True)
    plain = load_reward_model(
        backbone, config, load_renderer(backbone, config), device="cpu", seed=0
    )
    base.mkdir(parents=True)
    save_reward_model(plain, base)
    references = make_texts(50, seed=1)
    for seed, place in enumerate(adapters.values()):
        config = ModelConfig(path=str(base), max_length=256, lora=LoraConfig(rank=8))
        model = load_reward_model(
            base, config, load_renderer(base, config), device="cpu", seed=seed
        )
        chance = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weights in model.network.parameters():
                if weights.requires_grad:
                    weights += 0.02 * torch.randn(weights.shape, generator=chance)
        scale = scale_of(score_texts(model, references), "references", None)
        place.mkdir()
        save_reward_model(model, place)
        save_scale(place, scale)
        if seed == 0:
            whole.mkdir()
            save_reward_model(merged_adapters(model), whole)
            save_scale(whole, scale)
    return whole, adapters


def rewards_of(core: CultureRewards, texts: list[Text], **whose) -> list[float]:
    """The right answers, from the scoring core in this process."""
    items = [RewardItem(text.response, prompt=text.prompt, **whose) for text in texts]
    return [reward.value for reward in core.rewards(items)]


# ---- servers ---------------------------------------------------------------------------------


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def started(command: list[str], port: int, ready: str, log: Path):
    """A server's process, once its `ready` route answers; its own children end with it."""
    # MLflow starts the uvicorn that it finds on the path: the one beside this Python.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with log.open("w") as out:
        process = subprocess.Popen(
            command,
            stdout=out,
            stderr=out,
            start_new_session=True,
            env=os.environ | {"PATH": path},
        )
    try:
        end = time.monotonic() + 240
        while True:
            try:
                if asked(port, "GET", ready, None)[0] == 200:
                    break
            except OSError:
                pass
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"it does not answer: {log.read_text()[-2_000:]}")
            time.sleep(0.2)
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def ours(models: dict[str, Path], folder: Path, *, devices: int = 1, settings: tuple = ()):
    port = free_port()
    named = [f"{culture}={place}" for culture, place in models.items()]
    command = [sys.executable, "-m", "scpo_ray.cli", "serve", *named, "--no-auth"]
    command += ["--port", str(port), *["--device", "cpu"] * devices]
    for setting in settings:
        command += ["--set", setting]
    return port, started(command, port, "/ready", folder / "ours.log")


def mlflows(model: Path, folder: Path):
    import mlflow

    logged = folder / f"mlflow-{model.parent.name}"
    if not logged.is_dir():
        code = Path(__file__).parents[1] / "scpo_ray" / "tracking" / "mlflow_model.py"
        mlflow.pyfunc.save_model(
            logged, python_model=str(code), artifacts={"model": str(model)}, pip_requirements=[]
        )
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(logged)]
    command += ["--env-manager", "local", "--port", str(port)]
    return port, started(command, port, "/ping", folder / "mlflow.log")


def asked(port: int, method: str, route: str, body: object, connection=None):
    """Status and document of one request, over a connection that is kept or one of its own."""
    own = connection is None
    connection = connection or http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        content = None if body is None else json.dumps(body)
        connection.request(method, route, content, {"content-type": "application/json"})
        reply = connection.getresponse()
        content = reply.read()
        return reply.status, json.loads(content) if content.strip()[:1] in (b"{", b"[") else {}
    finally:
        if own:
            connection.close()


def our_body(texts: list[Text], cultures: list[str]) -> dict:
    return {
        "items": [
            {"prompt": text.prompt, "response": text.response, "culture": culture}
            for text, culture in zip(texts, cultures, strict=True)
        ]
    }


def mlflow_body(texts: list[Text], cultures: list[str]) -> dict:
    rows = [[text.prompt, text.response] for text in texts]
    return {"dataframe_split": {"columns": ["prompt", "response"], "data": rows}}


def our_rewards(answer: dict) -> list[float]:
    return [row["reward"] for row in answer["rewards"]]


def mlflow_rewards(answer: dict) -> list[float]:
    return [row["reward"] for row in answer["predictions"]]


# ---- how fast --------------------------------------------------------------------------------


class Measured:
    """Requests of several clients for some seconds."""

    def __init__(self, found: list[tuple[list[float], int, float, int, float]]) -> None:
        waits, done, worst, refused, seconds = zip(*found, strict=True)
        self.texts_per_s = sum(done) / max(seconds)
        self.p50, self.p99 = np.percentile(sum(waits, []) or [np.nan], [50, 99]) * 1_000
        self.worst, self.refused = max(worst), sum(refused)


def measure(port, route, body, rewards, texts, expected, *, clients, size, seconds, cultures):
    """Each client asks for `size` texts at a time, and again; every answer is compared."""
    # The first request of each client warms the server up and is not counted.
    warm = threading.Barrier(clients)

    def client(number: int):
        chance = random.Random(number)
        waits, done, worst, refused, end = [], 0, 0.0, 0, None
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=120)) as connection:
            while end is None or time.perf_counter() < end:
                rows = [chance.randrange(len(texts)) for _ in range(size)]
                named = [cultures[chance.randrange(len(cultures))] for _ in rows]
                document = body([texts[row] for row in rows], named)
                asked_at = time.perf_counter()
                try:
                    status, answer = asked(port, "POST", route, document, connection)
                except (OSError, http.client.HTTPException):
                    connection.close()
                    refused += 1
                    continue
                wait = time.perf_counter() - asked_at
                if status == 200:
                    wanted = [expected[c][row] for c, row in zip(named, rows, strict=True)]
                    worst = max(worst, float(np.abs(np.subtract(rewards(answer), wanted)).max()))
                if end is None:
                    warm.wait()
                    begin = time.perf_counter()
                    end = begin + seconds
                elif status == 200:
                    waits.append(wait)
                    done += size
                else:
                    refused += 1
        return waits, done, worst, refused, time.perf_counter() - begin

    with ThreadPoolExecutor(clients) as threads:
        return Measured(list(threads.map(client, range(clients))))


def pipeline_speed(model: Path, texts, expected, *, size, seconds):
    """transformers' own pipeline in this process."""
    from transformers import pipeline

    score = pipeline("text-classification", model=str(model), device="cpu")
    settings = {"function_to_apply": "none", "truncation": True, "max_length": 256}
    chance = random.Random(0)
    done, worst = 0, 0.0
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        rows = [chance.randrange(len(texts)) for _ in range(size)]
        pairs = [{"text": texts[row].prompt, "text_pair": texts[row].response} for row in rows]
        found = score(pairs, batch_size=size, **settings)
        wanted = [expected[row] for row in rows]
        worst = max(worst, max(abs(f["score"] - w) for f, w in zip(found, wanted, strict=True)))
        done += size
    return done / (time.perf_counter() - begin), worst


def make_tiny_models(folder: Path) -> tuple[Path, dict[str, Path]]:
    """Models that cost nothing to compute: what is left is what a server itself costs."""
    backbone = folder / "backbone"
    if not backbone.is_dir():
        make_tiny_backbone(backbone, sorted(set(WORDS)), seed=0)
    return make_models(backbone, folder)


def contenders(whole: Path, folder: Path, seconds: float, title: str) -> None:
    texts = make_texts(100, seed=2)
    alone = CultureRewards.load({"one": str(whole)}, device="cpu")
    expected = {"one": rewards_of(alone, texts)}
    del alone
    print(f"\n### {title}\n")
    print("| contender | clients | texts a request | texts/s | of mlflow's | largest difference | "
          "errors |")  # fmt: skip
    print("|---|---|---|---|---|---|---|")
    first: dict[tuple[int, int], float] = {}
    loads = ((1, 1), (8, 1), (8, 8))
    for name, (port, running), route, body, rewards in (
        (
            "mlflow models serve",
            mlflows(whole, folder),
            "/invocations",
            mlflow_body,
            mlflow_rewards,
        ),
        ("scpo serve", ours({"one": whole}, folder), "/v1/rewards", our_body, our_rewards),
    ):
        with running:
            for clients, size in loads:
                found = measure(
                    port, route, body, rewards, texts, expected,
                    clients=clients, size=size, seconds=seconds, cultures=["one"],
                )  # fmt: skip
                first.setdefault((clients, size), found.texts_per_s)
                ratio = found.texts_per_s / (first[clients, size] or np.nan)
                print(
                    f"| {name} | {clients} | {size} | {found.texts_per_s:.0f} | {ratio:.1f} | "
                    f"{found.worst:.0e} | {found.refused} |",
                    flush=True,
                )
    for size in (1, 8):
        speed, worst = pipeline_speed(whole, texts, expected["one"], size=size, seconds=seconds)
        how = "in a loop" if size == 1 else "in batches"
        ratio = speed / first[1 if size == 1 else 8, size]
        print(
            f"| transformers pipeline {how}, no server | - | {size} | {speed:.0f} | {ratio:.1f} "
            f"| {worst:.0e} | 0 |",
            flush=True,
        )


def cultures_and_clients(adapters: dict[str, Path], folder: Path, seconds: float) -> None:
    texts = make_texts(40, seed=3)
    core = CultureRewards.load({c: str(p) for c, p in adapters.items()}, device="cpu")
    expected = {culture: rewards_of(core, texts, culture=culture) for culture in CULTURES}
    del core
    port, running = ours(adapters, folder)
    with running:
        print("\n### Eight cultures' adapters on one base\n")
        print(
            "| cultures asked for | clients | texts a request | texts/s | time of one culture's |"
        )
        print("|---|---|---|---|---|")
        one = 0.0
        for number in (1, 2, 8):
            found = measure(
                port, "/v1/rewards", our_body, our_rewards, texts, expected,
                clients=4, size=64, seconds=seconds, cultures=CULTURES[:number],
            )  # fmt: skip
            one = one or found.texts_per_s
            print(f"| {number} | 4 | 64 | {found.texts_per_s:.0f} | "
                  f"{one / found.texts_per_s:.2f} |", flush=True)  # fmt: skip
        print("\n### One text a request\n")
        print("| clients | texts/s | p50 ms | p99 ms | largest difference |\n|---|---|---|---|---|")
        for clients in (1, 8, 64):
            found = measure(
                port, "/v1/rewards", our_body, our_rewards, texts, expected,
                clients=clients, size=1, seconds=seconds, cultures=CULTURES,
            )  # fmt: skip
            print(f"| {clients} | {found.texts_per_s:.0f} | {found.p50:.0f} | {found.p99:.0f} | "
                  f"{found.worst:.0e} |", flush=True)  # fmt: skip


# ---- under load ------------------------------------------------------------------------------


class Load:
    """Clients of every kind against one server; what came of each request is counted."""

    def __init__(self, port, texts, expected, mixed) -> None:
        self.port, self.texts, self.expected, self.mixed = port, texts, expected, mixed
        self.counts: Counter[str] = Counter()
        self.stop = threading.Event()
        self._lock = threading.Lock()

    def count(self, kind: str) -> None:
        with self._lock:
            self.counts[kind] += 1

    def good(self, seed: int) -> None:
        """One to fifty items, cultures and mixtures; each number is compared."""
        chance = random.Random(seed)
        while not self.stop.is_set():
            rows = [chance.randrange(len(self.texts)) for _ in range(chance.choice((1, 1, 4, 50)))]
            named = [chance.choice((*CULTURES, None)) for _ in rows]
            body = our_body([self.texts[row] for row in rows], named)
            for item in body["items"]:
                if item["culture"] is None:
                    item["mix"] = {CULTURES[0]: 0.5, CULTURES[1]: 0.5}
                    del item["culture"]
            try:
                status, answer = asked(self.port, "POST", "/v1/rewards", body)
            except TimeoutError:
                self.count("lost: no answer and no error")
                continue
            except (OSError, http.client.HTTPException):
                self.count("connection broken (its process was killed)")
                continue
            if status == 429:
                self.count("429, told to come again")
                time.sleep(0.2)
            elif status != 200:
                self.count(f"unexpected status {status}")
            else:
                wanted = [
                    self.mixed[row] if culture is None else self.expected[culture][row]
                    for culture, row in zip(named, rows, strict=True)
                ]
                far = np.abs(np.subtract(our_rewards(answer), wanted)).max()
                self.count("answered right" if far < TOLERANCE else "answered wrong")

    def broken(self, seed: int) -> None:
        """Bodies that are no JSON, too deep, too large, of wrong types, for unknown cultures."""
        chance = random.Random(seed)
        bodies = (
            (b"{", 422),
            (b"[" * 100_000, 400),
            (b"\xff\xfe", 400),
            (b'{"items": [{"response": 3}]}', 422),
            (b'{"items": [{"response": "a", "prompt": "b", "culture": "nobody"}]}', 422),
            (b'{"items": [' + b"{}," * 500_000 + b"{}]}", 422),
            (b" " * (9 * 2**20), 413),
        )
        while not self.stop.is_set():
            body, wanted = chance.choice(bodies)
            try:
                with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as c:
                    c.request("POST", "/v1/rewards", body, {"content-type": "application/json"})
                    status = c.getresponse().status
                self.count("abuse refused" if status == wanted else f"abuse got {status}")
            except TimeoutError:
                self.count("lost: no answer and no error")
            except (OSError, http.client.HTTPException):
                self.count("abuse cut off")
            time.sleep(0.1)

    def slow(self, seed: int) -> None:
        """Heads and bodies that come a byte at a time, and callers that go away midway."""
        chance = random.Random(seed)
        head = b"POST /v1/rewards HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        while not self.stop.is_set():
            sent = head + b"content-length: 1000\r\n\r\n{" if chance.random() < 0.5 else head
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=30) as caller:
                    caller.sendall(sent)
                    for _ in range(chance.choice((0, 40))):
                        time.sleep(0.1)
                        caller.sendall(b"a")
                self.count("slow caller went away")
            except OSError:
                self.count("slow caller cut off")


def memory_mb(process: psutil.Process) -> float:
    return process.memory_full_info().uss / 2**20


def survives(adapters: dict[str, Path], folder: Path, minutes: float) -> None:
    texts = make_texts(100, seed=4)
    core = CultureRewards.load({c: str(p) for c, p in adapters.items()}, device="cpu")

    expected = {culture: rewards_of(core, texts, culture=culture) for culture in CULTURES}
    mixed = rewards_of(core, texts, mix={CULTURES[0]: 0.5, CULTURES[1]: 0.5})
    del core
    port, running = ours(adapters, folder, devices=2, settings=("receive_timeout_s=2",))
    with running as server:
        load = Load(port, texts, expected, mixed)
        kinds = [load.good] * 6 + [load.broken] * 2 + [load.slow] * 4
        threads = [threading.Thread(target=kind, args=(n,)) for n, kind in enumerate(kinds)]
        for thread in threads:
            thread.start()
        memory, kills, spared = [], 0, served_by(server)[0]
        begin = time.monotonic()
        for second in count(1):
            time.sleep(max(0.0, begin + 5 * second - time.monotonic()))
            if time.monotonic() - begin > 60 * minutes:
                break
            memory.append(memory_mb(spared))
            others = [child for child in served_by(server) if child.pid != spared.pid]
            if second % 6 == 0 and others:
                others[0].kill()
                kills += 1
        load.stop.set()
        for thread in threads:
            thread.join()
        print(f"\n### {minutes:g} minutes of mixed load, {kills} processes killed\n")
        print("| what came of a request | requests |\n|---|---|")
        for kind, number in load.counts.most_common():
            print(f"| {kind} | {number} |")
        # The allocator's arenas fill in the first third.
        third = len(memory) // 3
        early, late = np.mean(memory[third : 2 * third]), np.mean(memory[2 * third :])
        print(
            f"\nMemory of the process that was never killed: {memory[0]:.0f} MB at first, "
            f"{early:.0f} in the second third, {late:.0f} in the last "
            f"({100 * (late / early - 1):+.1f} %)"
        )


def served_by(server: subprocess.Popen) -> list[psutil.Process]:
    """The server's processes that hold models: what it started, by age, but for Python's helper."""
    children = psutil.Process(server.pid).children()
    return sorted((c for c in children if c.memory_info().rss > 150 * 2**20), key=lambda c: c.pid)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("backbone", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--only", choices=("contenders", "cultures", "load"))
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    whole, adapters = make_models(arguments.backbone, arguments.folder / "small")
    tiny, tiny_adapters = make_tiny_models(arguments.folder / "tiny")
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    print(f"{os.cpu_count()} cores, {platform.machine()}, OMP_NUM_THREADS={threads}, "
          f"load before {os.getloadavg()[0]:.1f}")  # fmt: skip
    if arguments.only in (None, "contenders"):
        contenders(whole, arguments.folder, arguments.seconds, "One whole encoder")
        contenders(tiny, arguments.folder, arguments.seconds, "A tiny model: the server alone")
    if arguments.only in (None, "cultures"):
        cultures_and_clients(adapters, arguments.folder, arguments.seconds)
    if arguments.only in (None, "load"):
        survives(tiny_adapters, arguments.folder, arguments.minutes)


if __name__ == "__main__":
    main()
