"""The reward server under mixed load: is any number wrong, is a request lost, does memory grow?

    python benchmarks/serving_load.py BACKBONE FOLDER [--minutes 3]

Two processes of a tiny model with eight cultures; every 30 seconds one of them, always the younger,
is killed. Each number that comes is compared with the scoring core's. BACKBONE: see serving.py.
"""

import argparse
import http.client
import random
import socket
import subprocess
import threading
import time
from collections import Counter
from contextlib import closing
from itertools import count
from pathlib import Path

import numpy as np
import psutil
from served import (
    CULTURES,
    TOLERANCE,
    asked,
    make_texts,
    make_tiny_models,
    our_body,
    our_rewards,
    ours,
    read_arguments,
    rewards_of,
)

from scpo_ray.serve.core import CultureRewards


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
            (b"\xff", 400),
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
    parser.add_argument("--minutes", type=float, default=3)
    arguments = read_arguments(parser)
    _, adapters = make_tiny_models(arguments.folder / "tiny")
    survives(adapters, arguments.folder, arguments.minutes)


if __name__ == "__main__":
    main()
