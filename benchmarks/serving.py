"""The reward server against others that could give the same numbers.

    python benchmarks/serving.py BACKBONE FOLDER [--seconds 4] [--only encoder|tiny|cultures]

BACKBONE: a Hugging Face folder with a small encoder (`make backbone`: models/all-minilm-l6-v2).
Heads and adapters are drawn, not trained: what is measured is speed and whether answers are right.
Contenders serve the same model on the same machine in the same run, and are measured in turns, one
load after the other: whatever else the machine does, it does to both. Seconds of CPU tell what a
server costs on a machine that others use too. `serving_load.py` has the mixed load.
"""

import argparse
import http.client
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
from served import (
    CULTURES,
    MAX_LENGTH,
    asked,
    cpu_s,
    make_models,
    make_texts,
    make_tiny_models,
    mixed_body,
    mlflow_body,
    mlflow_rewards,
    mlflows,
    our_body,
    our_rewards,
    ours,
    read_arguments,
    rewards_of,
)

from scpo_ray.serve.core import CultureRewards

LOADS = ((1, 1), (8, 1), (64, 1), (1, 8), (8, 8), (64, 8), (1, 64), (8, 64))
"""Clients, and texts a request. Gathering helps many clients with a text or a few each; a lone
client, or one whose requests are batches already, it cannot."""


class Measured:
    """Requests of several clients for some seconds."""

    def __init__(
        self, found: list[tuple[list[float], int, float, int, float]], size: int, cpu: float
    ) -> None:
        waits, done, worst, refused, seconds = zip(*found, strict=True)
        # With each client's first request, of which no other time is told.
        self.cpu_ms = 1_000 * cpu / (sum(done) + size * len(found))
        self.texts_per_s = sum(done) / max(seconds)
        self.p50, self.p99 = np.percentile(sum(waits, []) or [np.nan], [50, 99]) * 1_000
        self.worst, self.refused = max(worst), sum(refused)


def measure(
    server, port, route, body, rewards, texts, expected, *, clients, size, seconds, cultures
):
    """Each client asks for `size` texts at a time, and again; every answer is compared."""
    # The first request of each client warms the server up and is not counted.
    warm = threading.Barrier(clients)

    def client(number: int):
        chance = random.Random(number)
        waits, done, worst, refused, end = [], 0, 0.0, 0, None
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=120)) as connection:
            while end is None or time.perf_counter() < end:
                rows = [chance.randrange(len(texts)) for _ in range(size)]
                # Each text has one culture: equal ones in a batch, which are computed once, are
                # then as many whatever the number of cultures.
                named = [cultures[row % len(cultures)] for row in rows]
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

    before = cpu_s(server)
    with ThreadPoolExecutor(clients) as threads:
        found = list(threads.map(client, range(clients)))
    return Measured(found, size, cpu_s(server) - before)


def pipeline_speed(model: Path, texts, expected, *, size, seconds):
    """transformers' own pipeline in this process."""
    from transformers import pipeline

    score = pipeline("text-classification", model=str(model), device="cpu")
    settings = {"function_to_apply": "none", "truncation": True, "max_length": MAX_LENGTH}
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


def contenders(whole: Path, folder: Path, seconds: float, title: str) -> None:
    texts = make_texts(100, seed=2)
    alone = CultureRewards.load({"one": str(whole)}, device="cpu")
    expected = {"one": rewards_of(alone, texts)}
    del alone
    theirs, their_server = mlflows(whole, folder)
    mine, my_server = ours({"one": whole}, folder)
    print(f"\n### {title}: of `mlflow models serve` and of `scpo serve`\n")
    print(
        "| clients | texts a request | texts/s | ratio | CPU ms a text | ratio | p50 ms | p99 ms "
        "| largest difference | errors |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    speeds = {}
    with ExitStack() as stack:
        mlflow, scpo = stack.enter_context(their_server), stack.enter_context(my_server)
        for clients, size in LOADS:
            a, b = (
                measure(
                    *server, texts, expected,
                    clients=clients, size=size, seconds=seconds, cultures=["one"],
                )
                for server in (
                    (mlflow, theirs, "/invocations", mlflow_body, mlflow_rewards),
                    (scpo, mine, "/v1/rewards", our_body, our_rewards),
                )
            )  # fmt: skip
            speeds[clients, size] = a.texts_per_s
            print(f"| {clients} | {size} | {_side_by_side(a, b)}", flush=True)
    for size in (1, 8):
        speed, worst = pipeline_speed(whole, texts, expected["one"], size=size, seconds=seconds)
        print(
            f"\ntransformers pipeline, {size} at a time, no server: {speed:.0f} texts/s, "
            f"{speed / speeds[1, size]:.1f} of MLflow's for one client; largest difference "
            f"{worst:.0e}",
            flush=True,
        )


def _side_by_side(a: Measured, b: Measured) -> str:
    cells = (
        f"{a.texts_per_s:.0f}, {b.texts_per_s:.0f}",
        f"{b.texts_per_s / a.texts_per_s:.1f}",
        f"{a.cpu_ms:.1f}, {b.cpu_ms:.1f}",
        f"{a.cpu_ms / b.cpu_ms:.1f}",
        f"{a.p50:.0f}, {b.p50:.0f}",
        f"{a.p99:.0f}, {b.p99:.0f}",
        f"{max(a.worst, b.worst):.0e}",
        f"{a.refused}, {b.refused}",
    )
    return " | ".join(cells) + " |"


def cultures_and_clients(adapters: dict[str, Path], folder: Path, seconds: float) -> None:
    texts = make_texts(40, seed=3)
    core = CultureRewards.load({c: str(p) for c, p in adapters.items()}, device="cpu")
    expected = {culture: rewards_of(core, texts, culture=culture) for culture in CULTURES}
    mix = {culture: 1 / len(CULTURES) for culture in CULTURES}
    mixed = dict.fromkeys(CULTURES, rewards_of(core, texts, mix=mix))
    del core
    port, running = ours(adapters, folder)
    with running as server:

        def measured(body, wanted, clients: int, size: int, number: int) -> Measured:
            return measure(
                server, port, "/v1/rewards", body, our_rewards, texts, wanted,
                clients=clients, size=size, seconds=seconds, cultures=CULTURES[:number],
            )  # fmt: skip

        print("\n### Eight cultures' adapters on one base, 4 clients, 64 texts a request\n")
        print("| asked for | texts/s | time of one culture's | CPU of one culture's | "
              "largest difference |\n|---|---|---|---|---|")  # fmt: skip
        one = None
        for number in (1, 2, 8):
            found = measured(our_body, expected, 4, 64, number)
            one = one or found
            print(f"| texts of {number} cultures | {_of_one(found, one)}", flush=True)
        found = measured(mixed_body, mixed, 4, 8, 8)
        print(f"| texts, each for a mixture of 8 | {_of_one(found, one)}", flush=True)
        print("\n### One text a request\n")
        print("| clients | texts/s | p50 ms | p99 ms | largest difference |\n|---|---|---|---|---|")
        for clients in (1, 8, 64):
            found = measured(our_body, expected, clients, 1, 8)
            print(f"| {clients} | {found.texts_per_s:.0f} | {found.p50:.0f} | {found.p99:.0f} | "
                  f"{found.worst:.0e} |", flush=True)  # fmt: skip


def _of_one(found: Measured, one: Measured) -> str:
    return (
        f"{found.texts_per_s:.0f} | {one.texts_per_s / found.texts_per_s:.2f} | "
        f"{found.cpu_ms / one.cpu_ms:.2f} | {found.worst:.0e} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--only", choices=("encoder", "tiny", "cultures"))
    arguments = read_arguments(parser)
    only, folder, seconds = arguments.only, arguments.folder, arguments.seconds
    if only != "tiny":
        whole, adapters = make_models(arguments.backbone, folder / "small")
    if only in (None, "encoder"):
        contenders(whole, folder, seconds, "One whole encoder")
    if only in (None, "tiny"):
        tiny, _ = make_tiny_models(folder / "tiny")
        contenders(tiny, folder, seconds, "A tiny model: the server alone")
    if only in (None, "cultures"):
        cultures_and_clients(adapters, folder, seconds)


if __name__ == "__main__":
    main()
