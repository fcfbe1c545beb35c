"""The command line, in this process and, where that is what counts, in processes of its own."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

import scpo_ray.cli
from scpo_ray.models import load_exported
from tests.tiny import tiny_document

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = (
    "quickstart",
    "data",
    "score",
    "train",
    "evaluate",
    "compare",
    "report",
    "export",
    "models",
)


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def scpo(monkeypatch, capsys):
    """Runs a command in this process."""

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["scpo", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            scpo_ray.cli.main()
        return Outcome(int(ended.value.code or 0), *capsys.readouterr())

    return run


def start_process(*arguments: object, code: str | None = None) -> "subprocess.Popen[str]":
    """A command in a process of its own; or Python code instead."""
    program = ["-m", "scpo_ray.cli", *map(str, arguments)] if code is None else ["-c", code]
    return subprocess.Popen(
        [sys.executable, *program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
    )


def in_process(*arguments: object, code: str | None = None) -> Outcome:
    process = start_process(*arguments, code=code)
    out, err = process.communicate(timeout=300)
    return Outcome(process.returncode, out, err)


def write_yaml(path: Path, document: Any) -> Path:
    path.write_text(yaml.safe_dump(document, allow_unicode=True))
    return path


@pytest.fixture
def config(tiny_reward_model, tmp_path) -> Path:
    return write_yaml(tmp_path / "run.yaml", tiny_document(tiny_reward_model, tmp_path / "runs"))


def run_folder(output_dir: Path, name: str = "scpo-North-s0") -> Path:
    [folder] = output_dir.glob(f"tiny/{name}-*")
    return folder


# Help and usage


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(scpo, command):
    outcome = scpo(command, "--help")

    assert outcome.code == 0
    assert command in outcome.out
    assert outcome.err == ""


def test_help_lists_every_command(scpo):
    outcome = scpo("--help")

    assert outcome.code == 0
    assert re.findall(r"^│ ([a-z]+) ", outcome.out, flags=re.MULTILINE) == list(COMMANDS)


@pytest.mark.slow
def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['scpo', '--help']\n"
        "from scpo_ray.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'mlflow', 'peft', 'pydantic', 'ray',\n"
        "         'scipy', 'pyarrow', 'matplotlib', 'deepspeed', 'pandas'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)

    outcome = in_process(code=code)

    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert (outcome.code, outcome.err) == (0, "[]\n")
    assert "compare" in outcome.out
    # Processor time, of which 0.5 s is too much; double it for a slow machine.
    assert seconds < 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "Missing argument 'CONFIG'"),
        (["nonsense"], "No such command 'nonsense'"),
        (["train", "a.yaml", "--nonsense"], "No such option"),
        (["evaluate", "a"], "Missing argument 'CONFIG'"),
        (["export", "a"], "Missing argument 'FOLDER'"),
    ],
)
def test_wrong_usage_is_said_and_exits_with_2(scpo, arguments, message):
    outcome = scpo(*arguments)

    assert outcome.code == 2
    assert message in outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.out == ""


@pytest.mark.slow
def test_an_own_fault_exits_with_1_and_a_traceback(config):
    code = (
        "import sys; sys.argv = ['scpo', 'data', sys.argv[0]]\n"
        f"sys.argv[2] = {str(config)!r}\n"
        "import scpo_ray.config_file\n"
        "def broken(path, overrides): raise RuntimeError('our own fault')\n"
        "scpo_ray.config_file.load_config = broken\n"
        "from scpo_ray.cli import main\n"
        "main()\n"
    )

    outcome = in_process(code=code)

    assert outcome.code == 1
    assert outcome.err.startswith("Traceback")
    assert "RuntimeError: our own fault" in outcome.err


# What the commands print


def test_data_counts_and_warns(scpo, config):
    table, document = scpo("data", config), json.loads(scpo("data", config, "--json").out)

    assert table.code == 0
    assert document["counts"].keys() == {"North", "South"}
    assert document["counts"]["North"]["users"] == 8
    assert "users or" in table.out and "questions" in table.out
    assert "North: one test user only" in table.out
    assert max(map(len, table.out.splitlines())) > 80


def test_score_stores_the_global_models_rewards(scpo, config, tmp_path):
    document = json.loads(scpo("score", config, "--json").out)
    outcome = scpo("score", config)

    assert document["cultures"].keys() == {"North", "South"}
    assert document["num_texts"] == 192
    assert Path(document["path"]).parent == tmp_path / "runs" / "cache" / "scores"
    assert Path(document["path"]).is_file()
    assert outcome.err.endswith(f"scores: {document['path']}\n")


def test_a_dry_run_prints_config_and_plan_and_trains_nothing(scpo, config, tmp_path):
    document = json.loads(scpo("train", config, "--dry-run", "--json").out)
    outcome = scpo("train", config, "--dry-run", "--set", "train.max_steps=7")

    assert document["config"]["train"]["max_steps"] == 12
    [plan] = document["plans"]
    assert (plan["name"], plan["num_steps"]) == ("scpo-North-s0", 12)
    assert plan["num_train_pairs"] >= plan["num_selected"] > 0
    assert plan["num_tokens"] > 0 and plan["seconds"] > 0
    assert plan["epochs"] == pytest.approx(12 * 8 / plan["num_selected"])
    assert outcome.code == 0
    assert "  max_steps: 7" in outcome.out
    assert "1 run, about" in outcome.out
    assert not (tmp_path / "runs" / "tiny").exists()


def test_train_prints_its_table_and_where_everything_is(scpo, config, tmp_path):
    outcome = scpo("train", config)

    folder = run_folder(tmp_path / "runs")
    assert outcome.code == 0
    assert "North" in outcome.out and "South" in outcome.out
    assert "…" not in outcome.out
    for name in ("model", "result.json", "report.html"):
        assert str(folder / name) in outcome.err
        assert (folder / name).exists()
    document = json.loads(scpo("train", config, "--json").out)
    assert document == json.loads((folder / "result.json").read_text())


def test_names_from_the_data_are_printed_as_they_are(scpo, tiny_reward_model, tmp_path):
    name = "[bold]Korea, [/] Democratic People's Republic of :smile: …/../"
    document = tiny_document(tiny_reward_model, tmp_path / "runs")
    document["data"] |= {"users": {name: 10, "South": 8}, "cultures": [name, "South"]}
    document["culture_weights"] = {name: 1.0}
    path = write_yaml(tmp_path / "run.yaml", document)

    outcome = scpo("train", path)

    assert outcome.code == 0
    assert name in outcome.out
    assert list((tmp_path / "runs" / "tiny").rglob("result.json"))
    assert {p.name for p in tmp_path.iterdir()} == {"run.yaml", "runs"}


def test_settings_are_overridden_on_the_command_line(scpo, config, tmp_path):
    outcome = scpo(
        "train", config, "--set", "method=finetune", "--set", "train.max_steps=2", "--json"
    )

    document = json.loads(outcome.out)
    assert (document["method"], document["num_steps"]) == ("finetune", 2)
    assert run_folder(tmp_path / "runs", "finetune-North-s0").is_dir()


# Export and evaluate


def test_an_exported_model_evaluates_to_the_runs_own_numbers(scpo, config, tmp_path):
    result = json.loads(scpo("train", config, "--json").out)
    exported = tmp_path / "exported"

    assert scpo("export", run_folder(tmp_path / "runs"), exported).code == 0
    of_export = json.loads(scpo("evaluate", exported, config, "--json").out)
    of_run = json.loads(scpo("evaluate", run_folder(tmp_path / "runs"), config, "--json").out)

    assert of_export == of_run == result["evaluation"]
    assert "all, minus global" in scpo("evaluate", exported, config).out
    again = scpo("export", run_folder(tmp_path / "runs"), exported)
    assert (again.code, again.err) == (2, f"{exported}: exists; name a new folder\n")


def test_a_merged_export_evaluates_to_the_runs_own_numbers(scpo, config, tmp_path):
    lora = ("--set", "model.lora.rank=4")
    result = json.loads(scpo("train", config, *lora, "--json").out)
    merged = tmp_path / "merged"

    assert scpo("export", run_folder(tmp_path / "runs"), merged, "--merge").code == 0

    assert (merged / "model.safetensors").is_file()
    assert not hasattr(load_exported(merged, device="cpu").network, "peft_config")
    evaluation = json.loads(scpo("evaluate", merged, config, "--json").out)
    for culture, expected in result["evaluation"].items():
        assert evaluation[culture]["after"] == expected["after"]


def test_what_cannot_be_exported_is_refused(scpo, config, tmp_path):
    scpo("train", config)

    merge = scpo("export", run_folder(tmp_path / "runs"), tmp_path / "new", "--merge")
    nothing = scpo("export", tmp_path / "runs", tmp_path / "new")

    assert (merge.code, merge.err) == (2, "the model has no adapters to merge\n")
    assert nothing.code == 2
    assert f"{tmp_path / 'runs'}: has no trained model" in nothing.err
    assert not (tmp_path / "new").exists()


# Comparisons and reports


@pytest.fixture
def comparison(tiny_reward_model, tmp_path) -> Path:
    document = tiny_document(
        tiny_reward_model,
        tmp_path / "runs",
        train={"max_steps": 3},
        data={"users": {"Majority": 8, "North": 14, "South": 14}},
    )
    space = {"method": ["finetune", "scpo"], "culture": ["North", "South"]}
    return write_yaml(tmp_path / "compare.yaml", {"run": document, "space": space})


def modified(folder: Path) -> dict[str, int]:
    return {p.parent.name: p.stat().st_mtime_ns for p in folder.glob("tiny/*/result.json")}


def test_a_comparison_runs_again_only_what_is_missing(scpo, comparison, tmp_path):
    outcome = scpo("compare", comparison)
    summary = json.loads(scpo("compare", comparison, "--json").out)
    before = modified(tmp_path / "runs")
    lost = run_folder(tmp_path / "runs", "scpo-South-s0")
    shutil.rmtree(lost)

    again = json.loads(scpo("compare", comparison, "--json").out)

    assert outcome.code == 0
    assert [line.split()[0] for line in outcome.out.splitlines()[-3:-1]] == ["finetune", "scpo"]
    assert len(before) == 4
    after = modified(tmp_path / "runs")
    assert {name for name in before if after[name] != before[name]} == {lost.name}
    assert again == summary
    assert (summary["methods"], summary["cultures"]) == (["finetune", "scpo"], ["North", "South"])
    assert {(s["method"], s["culture"]) for s in summary["summaries"]} == {
        (method, culture) for method in ("finetune", "scpo") for culture in ("", "North", "South")
    }
    assert (tmp_path / "runs" / "tiny" / "report.html").is_file()


def test_a_failing_run_is_listed_and_the_others_go_on(scpo, comparison, tmp_path):
    threshold = ("--set", "run.selection.filter_threshold=1.0e-6")

    outcome = scpo("compare", comparison, *threshold)
    document = json.loads(scpo("compare", comparison, *threshold, "--json").out)

    assert outcome.code == 2
    assert "finetune" in outcome.out
    assert document["methods"] == ["finetune"]
    assert document["failures"].keys() == {"scpo-North-s0", "scpo-South-s0"}
    assert "failed: scpo-North-s0: nothing to train on North: no pair of" in outcome.err
    assert "Traceback" not in outcome.err


def test_a_comparison_of_which_every_run_fails_has_no_summary(scpo, comparison, tmp_path):
    outcome = scpo(
        "compare",
        comparison,
        "--set",
        "run.selection.filter_threshold=1.0e-6",
        "--set",
        "space.method=[scpo]",
    )

    assert outcome.code == 2
    assert "no run of the comparison came to its end" in outcome.err
    assert not (tmp_path / "runs" / "tiny" / "comparison.json").exists()


def test_a_dry_comparison_plans_every_run(scpo, comparison, tmp_path):
    document = json.loads(scpo("compare", comparison, "--dry-run", "--json").out)

    names = [plan["name"] for plan in document["plans"]]
    assert names == ["finetune-North-s0", "scpo-North-s0", "finetune-South-s0", "scpo-South-s0"]
    assert all(plan["seconds"] > 0 for plan in document["plans"])
    assert not (tmp_path / "runs" / "tiny").exists()


def test_a_report_is_made_of_folders(scpo, comparison, config, tmp_path):
    scpo("compare", comparison)
    page = tmp_path / "page.html"
    experiment = tmp_path / "runs" / "tiny"

    whole = scpo("report", experiment, "--output", page)
    single = scpo("report", run_folder(tmp_path / "runs"), "--output", tmp_path / "single.html")

    assert whole == Outcome(0, "", f"report: {page}\n")
    assert "North" in page.read_text()
    assert single.code == 0
    nothing = scpo("report", tmp_path, "--output", tmp_path / "none.html")
    assert nothing.code == 2
    assert f"{tmp_path}: no result.json in it or one folder below" in nothing.err
    assert not (tmp_path / "none.html").exists()


@pytest.mark.slow
def test_models_lists_what_runs_registered(scpo, tiny_reward_model, tmp_path):
    document = tiny_document(tiny_reward_model, tmp_path / "runs", tracking={"tracker": "mlflow"})
    config = write_yaml(tmp_path / "run.yaml", document)
    assert scpo("train", config).code == 0
    uri = f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}"

    [model] = json.loads(scpo("models", "--uri", uri, "--json").out)

    assert (model["name"], model["version"], model["aliases"]) == ("scpo-North", 1, ["candidate"])
    assert (model["culture"], model["method"]) == ("North", "scpo")
    assert "scpo-North" in scpo("models", "--uri", uri).out


# Killed, stopped and started again

LONG = {"max_steps": 240, "checkpoint_every": 40, "log_every": 7}


def long_config(model: Path, folder: Path) -> Path:
    """A run of a few seconds, with dropout, that tracks its curve."""
    folder.mkdir(exist_ok=True)
    document = tiny_document(model, folder / "runs", train=LONG, tracking={"tracker": "jsonl"})
    return write_yaml(folder / "run.yaml", document)


@pytest.fixture(scope="module")
def undisturbed(tiny_reward_model, tmp_path_factory) -> Path:
    """The folder of a long run that nothing stopped; it printed JSON alone."""
    folder = tmp_path_factory.mktemp("undisturbed")
    outcome = in_process("train", long_config(tiny_reward_model, folder), "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["num_steps"] == LONG["max_steps"]
    return run_folder(folder / "runs")


def stop_midway(process: "subprocess.Popen[str]", folder: Path, stop: signal.Signals) -> Outcome:
    """Waits for the first whole checkpoint, then sends the signal."""
    deadline = time.monotonic() + 240
    while not list(folder.glob("runs/tiny/*/checkpoints/step-*")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(stop)
    out, err = process.communicate(timeout=60)
    return Outcome(process.returncode, out, err)


def curve_of(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if k != "time"} for line in lines if "train/loss" in line
    ]


def assert_ends_alike(folder: Path, undisturbed: Path) -> None:
    ours, theirs = (p / "model" / "model.safetensors" for p in (folder, undisturbed))
    assert ours.read_bytes() == theirs.read_bytes()
    assert curve_of(folder) == curve_of(undisturbed)
    steps = [point["step"] for point in curve_of(folder)]
    assert steps == [*range(7, 240, 7), 240]
    results = [json.loads((p / "result.json").read_text()) for p in (folder, undisturbed)]
    assert results[0]["evaluation"] == results[1]["evaluation"]
    assert results[0]["curve"] == results[1]["curve"]


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_byte_for_byte_as_an_undisturbed_one(
    tiny_reward_model, tmp_path, undisturbed
):
    config = long_config(tiny_reward_model, tmp_path)
    killed = stop_midway(start_process("train", config), tmp_path, signal.SIGKILL)
    assert killed.code == -signal.SIGKILL
    assert not list(tmp_path.rglob("result.json"))

    outcome = in_process("train", config)

    assert outcome.code == 0, outcome.err
    assert "resumed at step" in outcome.err
    assert_ends_alike(run_folder(tmp_path / "runs"), undisturbed)


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on_and_the_run_does(tiny_reward_model, tmp_path, undisturbed):
    config = long_config(tiny_reward_model, tmp_path)

    stopped = stop_midway(start_process("train", config), tmp_path, signal.SIGINT)

    assert stopped.code == 130
    assert stopped.err.endswith("stopped; the same command goes on from the last checkpoint\n")
    assert "Traceback" not in stopped.err
    assert not list(tmp_path.rglob("result.json"))
    outcome = in_process("train", config)
    assert outcome.code == 0, outcome.err
    assert "resumed at step" in outcome.err
    assert_ends_alike(run_folder(tmp_path / "runs"), undisturbed)


@pytest.mark.slow
def test_a_run_that_diverges_exits_with_2_and_says_where(tiny_reward_model, tmp_path):
    config = long_config(tiny_reward_model, tmp_path)

    outcome = in_process("train", config, "--set", "train.learning_rate=1.0e+30")

    assert outcome.code == 2
    assert re.search(r"training stopped at step \d+: the (loss|gradient)", outcome.err)
    assert "pairs of the step: " in outcome.err
    assert "last good checkpoint: none yet" in outcome.err
    assert "Traceback" not in outcome.err
