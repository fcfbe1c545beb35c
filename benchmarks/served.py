"""What the two scripts about the reward server share: models, texts, servers and requests."""

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
import time
from argparse import ArgumentParser, Namespace
from contextlib import closing, contextmanager
from pathlib import Path

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
MAX_LENGTH = 128
"""Tokens; no text below is longer, as tools cut a pair in different places."""


# ---- models and texts ------------------------------------------------------------------------


def make_texts(number: int, seed: int) -> list[Text]:
    """Prompts of 5 to 25 words and responses of 10 to 80, as people write to a chat model."""
    chance = random.Random(seed)

    def said(low: int, high: int) -> str:
        return " ".join(chance.choices(WORDS, k=chance.randint(low, high)))

    return [Text((), said(5, 25), said(10, 80)) for _ in range(number)]


def make_models(backbone: Path, folder: Path) -> tuple[Path, dict[str, Path]]:
    """A whole model, and adapters of every culture on one base; made once."""
    base, whole = folder / "base", folder / "whole"
    adapters = {culture: folder / culture for culture in CULTURES}
    if whole.is_dir():
        return whole, adapters
    config = ModelConfig(path=str(backbone), max_length=MAX_LENGTH, new_head=True)
    plain = load_reward_model(
        backbone, config, load_renderer(backbone, config), device="cpu", seed=0
    )
    base.mkdir(parents=True)
    save_reward_model(plain, base)
    references = make_texts(50, seed=1)
    for seed, place in enumerate(adapters.values()):
        config = ModelConfig(path=str(base), max_length=MAX_LENGTH, lora=LoraConfig(rank=8))
        model = load_reward_model(
            base, config, load_renderer(base, config), device="cpu", seed=seed
        )
        chance = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weights in model.network.parameters():
                if weights.requires_grad:
                    weights += 0.02 * torch.randn(weights.shape, generator=chance)
        scale = scale_of(score_texts(model, references), "references")
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


def make_tiny_models(folder: Path) -> tuple[Path, dict[str, Path]]:
    """Models that cost nothing to compute: what is left is what a server itself costs."""
    backbone = folder / "backbone"
    if not backbone.is_dir():
        make_tiny_backbone(backbone, sorted(set(WORDS)), seed=0)
    return make_models(backbone, folder)


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


def mixed_body(texts: list[Text], cultures: list[str]) -> dict:
    """Every text for a mixture of all cultures, which is as many rewards as there are cultures."""
    mix = {culture: 1 / len(CULTURES) for culture in CULTURES}
    return {"items": [{"prompt": t.prompt, "response": t.response, "mix": mix} for t in texts]}


def mlflow_body(texts: list[Text], cultures: list[str]) -> dict:
    rows = [[text.prompt, text.response] for text in texts]
    return {"dataframe_split": {"columns": ["prompt", "response"], "data": rows}}


def our_rewards(answer: dict) -> list[float]:
    return [row["reward"] for row in answer["rewards"]]


def mlflow_rewards(answer: dict) -> list[float]:
    return [row["reward"] for row in answer["predictions"]]


def cpu_s(server: subprocess.Popen) -> float:
    """Seconds of CPU that a server and its processes have used."""
    first = psutil.Process(server.pid)
    return sum(sum(p.cpu_times()[:2]) for p in (first, *first.children(recursive=True)))


def read_arguments(parser: ArgumentParser) -> Namespace:
    """The arguments that both scripts take, and the line about the machine that both print."""
    parser.add_argument("backbone", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    print(f"{os.cpu_count()} cores, {platform.machine()}, OMP_NUM_THREADS={threads}, "
          f"load before {os.getloadavg()[0]:.1f}")  # fmt: skip
    return arguments
