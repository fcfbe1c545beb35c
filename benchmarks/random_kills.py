"""Kills at random: `python benchmarks/random_kills.py [KILLS] [SEED] [MINUTES]`.

A tiny run (`scpo train`) and a comparison of two runs (`scpo compare`) are killed at a random
moment by SIGINT, SIGTERM or SIGKILL, with each tracker, and the same command is given again until
it ends. The end must be that of a command that nothing disturbed: the same numbers in every result,
models alike bit for bit, one MLflow run for each run with each point once, one registered version,
the same files. Half of the kills come at a time drawn evenly over an undisturbed command's (of the
processor, so that a busy machine changes little), half shortly after a drawn moment has begun, so
that short ones are hit too.

Starting Python and its libraries takes longer than such a run: nine of ten commands are begun in
a process that has them loaded (a fork of this one), the tenth in a new one.
"""

import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

MOMENTS = ("start-up", "scoring", "training", "saving", "evaluation", "tracking")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
TRACKERS = ("mlflow", "jsonl", "none")
COMMANDS = {"train": 3, "compare": 1}
"""What is killed, and how often beside the other."""
MOST_KILLS = 6
"""Of one command; then it is left alone."""
FRESH = 0.1
"""Share of the commands that begin in a new Python process."""
NEW_STORE = 0.25
"""Share of the MLflow trials that begin without a database: making one takes longer than a run."""
TIMEOUT_S = 600
USED_S: dict[int, float] = {}
"""Seconds of the processor that ended processes had."""
_EXPERIMENT = "kills"
# What says how long something took or where it lies, and not what was found.
_CHANCE = (
    *("train_seconds", "seconds", "time"),
    *("model_dir", "output_dir", "path", "uri"),
    *("sha256", "crc32"),
)


@dataclass
class Trial:
    """One command in a folder of its own, and what became of it."""

    number: int
    command: str
    tracker: str
    folder: Path
    kills: list[tuple[str, str, str]] = field(default_factory=list)
    """(signal, tracker, moment)"""

    @property
    def experiment(self) -> Path:
        return self.folder / "runs" / _EXPERIMENT

    @property
    def errors(self) -> Path:
        return self.folder / "stderr"


def write_config(trial: Trial, model: Path) -> None:
    run = {
        "experiment": _EXPERIMENT,
        "output_dir": str(trial.folder / "runs"),
        "device": "cpu",
        "culture_weights": {"North": 1.0},
        "data": {
            "source": "synthetic",
            "users": {"Majority": 8, "North": 8, "South": 8},
            "interactions_per_user": 4,
            "cultures": ["North", "South"],
        },
        "model": {"path": str(model), "max_length": 48},
        "train": {
            "batch_size": 8,
            "max_steps": 48,
            "checkpoint_every": 8,
            "log_every": 4,
            "learning_rate": 1e-3,
        },
        "evaluation": {"bootstrap_samples": 100},
        "tracking": {"tracker": trial.tracker},
    }
    if trial.tracker == "mlflow":
        run["tracking"] |= {"uri": f"sqlite:///{trial.folder / 'runs' / 'mlflow.db'}"}
    document: Any = run
    if trial.command == "compare":
        del run["culture_weights"]
        document = {"run": run, "space": {"method": ["finetune", "scpo"], "culture": ["North"]}}
    (trial.folder / "config.yaml").write_text(yaml.safe_dump(document))


def start(trial: Trial, *, fresh: bool) -> int:
    """The command's process; its lines go to files in the trial's folder, anew each time."""
    arguments = [trial.command, str(trial.folder / "config.yaml")]
    with (trial.folder / "stdout").open("w") as out, trial.errors.open("w") as err:
        if fresh:
            command = [sys.executable, "-m", "scpo_ray.cli", *arguments]
            return subprocess.Popen(command, stdout=out, stderr=err).pid
        process = os.fork()
        if process:
            return process
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
    _become_the_command(arguments)
    raise AssertionError("it has ended above")


def _become_the_command(arguments: list[str]) -> None:
    from scpo_ray.cli.main import main

    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
    sys.argv = ["scpo", *arguments]
    code = 1
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def moment(trial: Trial) -> str:
    """What the command is at, from what it has said and written so far."""
    runs = [path for path in trial.experiment.glob("*-*") if path.is_dir()]
    open_runs = [path for path in runs if not (path / "result.json").exists()]
    if runs and not open_runs:
        return "tracking"
    if "training pairs" not in trial.errors.read_text():
        cache = trial.folder / "runs" / "cache"
        has_tokens = any(cache.glob("tokens/*/*/manifest.json"))
        return "scoring" if has_tokens and not any(cache.glob("scores/*/*")) else "start-up"
    for path in open_runs:
        if (path / "training.json").exists():
            # Pictures are the last that is made before the result.
            return "tracking" if (path / "report.html").exists() else "evaluation"
        if any(path.glob(".model*.part")) or (path / "model").exists():
            return "saving"
        if any(path.glob("checkpoints/.*.part")):
            return "saving"
    return "training"


def wait(process: int, until: Callable[[], bool] = lambda: False) -> int | None:
    """The exit status, or None if `until` holds before the end."""
    deadline = time.monotonic() + TIMEOUT_S
    while not until():
        ended, status, used = os.wait4(process, os.WNOHANG)
        if ended:
            USED_S[process] = used.ru_utime + used.ru_stime
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            raise SystemExit(f"process {process} does not end")
        time.sleep(0.002)
    return None


def used_s(process: int) -> float:
    """Seconds of the processor that a process has had; 0 for one that has just ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def drawn_time(
    trial: Trial, process: int, usual_s: float, rng: random.Random
) -> Callable[[], bool]:
    """Whether it is time to kill a command that has just begun and usually takes so long."""
    if rng.random() < 0.5:
        after = rng.random() * usual_s
        return lambda: used_s(process) >= after
    wanted, delay, begun = rng.choice(MOMENTS), rng.random() * 0.1 * usual_s, [0.0]

    def is_time() -> bool:
        if not begun[0] and moment(trial) == wanted:
            begun[0] = used_s(process)
        return bool(begun[0]) and used_s(process) >= begun[0] + delay

    return is_time


def disturbed(trial: Trial, usual_s: float, loading_s: float, rng: random.Random) -> str | None:
    """Gives the command, and kills it, until it ends; what was wrong, None if nothing."""
    while True:
        fresh = rng.random() < FRESH
        process = start(trial, fresh=fresh)
        # Loading the libraries is a part of what a new process does.
        is_time = drawn_time(trial, process, usual_s + fresh * loading_s, rng)
        if len(trial.kills) >= MOST_KILLS:
            is_time = lambda: False  # noqa: E731
        code = wait(process, is_time)
        if code is not None:
            return None if code == 0 else f"exit code {code}: {trial.errors.read_text()[-2_000:]}"
        number, at = rng.choice(SIGNALS), moment(trial)
        os.kill(process, number)
        code = wait(process)
        if code == 0:
            return None  # It had done its work before the signal came.
        trial.kills.append((number.name, trial.tracker, at))
        if code not in (-number, 130 if number == signal.SIGINT else -number):
            return f"{number.name} at {at}: exit code {code}: {trial.errors.read_text()[-2_000:]}"


def ending(trial: Trial) -> dict[str, Any]:
    """All that must be alike."""
    found: dict[str, Any] = {"files": sorted(_names(trial.experiment))}
    for path in sorted(trial.experiment.rglob("*")):
        name = path.relative_to(trial.experiment).as_posix()
        if path.name in ("result.json", "comparison.json", "training.json"):
            found[name] = without_chance(json.loads(path.read_text()))
        elif path.name in ("model.safetensors", "test_pairs.parquet"):
            found[name] = path.read_bytes()
        elif path.name == "metrics.jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [{k: v for k, v in x.items() if not _is_chance(k)} for x in lines]
    if trial.tracker == "mlflow":
        found["mlflow"] = tracked(trial.folder / "runs" / "mlflow.db")
    return found


def _names(folder: Path) -> list[str]:
    return [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]


def _is_chance(name: str) -> bool:
    return name.rpartition("/")[2] in _CHANCE


def without_chance(document: Any) -> Any:
    if isinstance(document, dict):
        return {k: without_chance(v) for k, v in document.items() if not _is_chance(k)}
    return [without_chance(v) for v in document] if isinstance(document, list) else document


def tracked(database: Path) -> dict[str, Any]:
    """What the store has, by the name of each run; a name that it has twice twice."""
    read = database.with_suffix(".json")
    in_fork(lambda: read.write_text(json.dumps(read_store(f"sqlite:///{database}"))))
    store: dict[str, Any] = json.loads(read.read_text())
    return store


def read_store(uri: str) -> dict[str, Any]:
    from mlflow import MlflowClient

    client = MlflowClient(uri, uri)
    experiments = [e.experiment_id for e in client.search_experiments() if e.name == _EXPERIMENT]
    runs = []
    for run in client.search_runs(experiments):
        points = {
            key: [[m.step, m.value] for m in client.get_metric_history(run.info.run_id, key)]
            for key in run.data.metrics
            if not _is_chance(key)
        }
        artifacts = sorted(file.path for file in client.list_artifacts(run.info.run_id))
        runs.append([run.info.run_name, run.info.status, points, artifacts])
    versions = sorted([v.name, int(v.version)] for v in client.search_model_versions())
    return {"runs": sorted(runs), "versions": versions}


def make_store(uri: str) -> None:
    from mlflow import MlflowClient

    MlflowClient(uri).search_experiments()


def in_fork(work: Callable[[], object]) -> None:
    """In a fork of this process, so that this one computes nothing and opens no database."""
    process = os.fork()
    if not process:
        code = 1
        try:
            work()
            code = 0
        except Exception as error:
            print(error, file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    if wait(process):
        raise SystemExit("could not be done")


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Names of what is not alike; of files, those that one of the two has."""
    names = [n for n in {**found, **expected} if found.get(n) != expected.get(n)]
    files = set(found["files"]) ^ set(expected["files"])
    return [*(n for n in names if n != "files"), *sorted(files)]


def make_model(folder: Path) -> Path:
    """A two-layer BERT with a drawn head, as a stand-in for a global model."""
    from scpo_ray.data.synthetic import vocabulary
    from scpo_ray.models.export import save_reward_model
    from scpo_ray.models.loading import load_reward_model
    from scpo_ray.models.rendering import load_renderer
    from scpo_ray.models.tiny import make_tiny_backbone
    from scpo_ray.settings.model import ModelConfig

    backbone = folder / "backbone"
    make_tiny_backbone(backbone, vocabulary(), seed=0)
    config = ModelConfig(path=str(backbone), max_length=48, new_head=True)
    renderer = load_renderer(backbone, config)
    model = load_reward_model(backbone, config, renderer, device="cpu", seed=0)
    (folder / "model").mkdir()
    save_reward_model(model, folder / "model")
    return folder / "model"


def load_libraries() -> None:
    """What every command loads, once; nothing is computed, so that forks begin clean."""
    import mlflow.pyfunc  # noqa: F401
    import torch

    import scpo_ray.launch.runs
    import scpo_ray.report.tables  # noqa: F401

    torch.set_num_threads(1)


def new_trial(number: int, command: str, tracker: str, folder: Path, model: Path) -> Trial:
    trial = Trial(number, command, tracker, folder / f"{number}-{command}-{tracker}")
    (trial.folder / "runs").mkdir(parents=True)
    write_config(trial, model)
    return trial


def show(kills: Counter[tuple[str, str, str]], trials: list[Trial], faults: list[str]) -> None:
    print(f"\n| signal | tracker | {' | '.join(MOMENTS)} | all |")
    print("|---" * (len(MOMENTS) + 3) + "|")
    for number in SIGNALS:
        for tracker in TRACKERS:
            counts = [kills[number.name, tracker, at] for at in MOMENTS]
            line = " | ".join(map(str, [*counts, sum(counts)]))
            print(f"| {number.name} | {tracker} | {line} |")
    commands = Counter(trial.command for trial in trials if trial.kills)
    killed = ", ".join(f"{commands[name]} scpo {name}" for name in COMMANDS)
    print(f"\n{kills.total()} kills in {killed}; {len(faults)} ended otherwise than undisturbed")


def main() -> None:
    wanted, seed, minutes = (*map(int, sys.argv[1:]), *(300, 0, 60)[len(sys.argv) - 1 :])
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    folder = Path(tempfile.mkdtemp(prefix="scpo-kills-"))
    load_libraries()
    loading_s = time.process_time()
    in_fork(lambda: make_model(folder))
    store = folder / "mlflow.db"
    in_fork(lambda: make_store(f"sqlite:///{store}"))
    model, rng, kills = folder / "model", random.Random(seed), Counter[tuple[str, str, str]]()
    trials, faults = list[Trial](), list[str]()
    usual, expected = {}, {}
    for kind in [(command, tracker) for command in COMMANDS for tracker in TRACKERS]:
        trial = new_trial(0, *kind, folder, model)
        code = wait(process := start(trial, fresh=False))
        usual[kind], expected[kind] = USED_S[process], ending(trial)
        if code:
            raise SystemExit(trial.errors.read_text())
        print(
            f"scpo {kind[0]}, {kind[1]}: {usual[kind]:.1f} s of the processor, undisturbed",
            flush=True,
        )
    began = time.monotonic()
    while kills.total() < wanted and time.monotonic() - began < 60 * minutes:
        [command] = rng.choices(list(COMMANDS), list(COMMANDS.values()))
        kind = command, rng.choice(TRACKERS)
        trial = new_trial(len(trials) + 1, *kind, folder, model)
        if trial.tracker == "mlflow" and rng.random() >= NEW_STORE:
            shutil.copyfile(store, trial.folder / "runs" / store.name)
        fault = disturbed(trial, usual[kind], loading_s, rng)
        if fault is None:
            unlike = differences(ending(trial), expected[kind])
            fault = f"not as undisturbed: {', '.join(unlike)}" if unlike else None
        kills.update(trial.kills)
        trials.append(trial)
        if fault is None:
            shutil.rmtree(trial.folder)
        else:
            faults.append(f"{trial.folder}: {fault}; killed at {trial.kills}")
            print(faults[-1], flush=True)
        print(f"{kills.total()} kills, {len(trials)} commands", file=sys.stderr, flush=True)
    show(kills, trials, faults)
    minutes_taken = (time.monotonic() - began) / 60
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"seed {seed}, {minutes_taken:.0f} minutes, {machine}")
    if faults:
        raise SystemExit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
