"""The command line, in this process and, where that is what counts, in processes of its own."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from rich.console import Console

from scpo_ray.commands.efficiency import efficiency_file
from scpo_ray.launch.runs import start_run
from scpo_ray.models.export import load_exported
from scpo_ray.report import listings, tables
from scpo_ray.settings.files import load_config, load_sweep
from scpo_ray.storage.disk import read_json
from scpo_ray.sweep.space import check_space, planned_settings, trials_of
from scpo_ray.tracking.trackers import RegisteredModel
from tests.evaluation.test_opinions import opinions_document
from tests.results import comparison
from tests.tiny import tiny_document

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = (
    "init",
    "doctor",
    "quickstart",
    "data",
    "score",
    "train",
    "evaluate",
    "compare",
    "sweep",
    "efficiency",
    "report",
    "export",
    "models",
    "serve",
    "runs",
    "clean",
    "reward",
    "steer",
    "merge",
    "scale",
)


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


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


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['scpo', '--help']\n"
        "from scpo_ray.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'mlflow', 'peft', 'pydantic', 'ray',\n"
        "         'scipy', 'pyarrow', 'matplotlib', 'deepspeed', 'pandas'}\n"
        "print(sorted(heavy & set(sys.modules)), len(sys.modules), file=sys.stderr)\n"
    )

    outcome = in_process(code=code)

    heavy, _, num_modules = outcome.err.rpartition(" ")
    assert (outcome.code, heavy) == (0, "[]")
    assert "compare" in outcome.out
    # Some 420 in half a second; torch alone would be 1,000 more.
    assert int(num_modules) < 600


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "Missing argument 'config'"),
        (["nonsense"], "No such command 'nonsense'"),
        (["train", "a.yaml", "--nonsense"], "No such option"),
        (["evaluate", "a"], "name a model and a config, or give --scores A B"),
        (["export", "a"], "Missing argument 'folder'"),
    ],
)
def test_wrong_usage_is_said_and_exits_with_2(scpo, arguments, message):
    outcome = scpo(*arguments)

    assert outcome.code == 2
    assert message in outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.out == ""


def test_an_own_fault_exits_with_1_and_a_traceback(config):
    code = (
        "import sys; sys.argv = ['scpo', 'data', sys.argv[0]]\n"
        f"sys.argv[2] = {str(config)!r}\n"
        "import scpo_ray.settings.files\n"
        "def broken(path, overrides): raise RuntimeError('our own fault')\n"
        "scpo_ray.settings.files.load_config = broken\n"
        "from scpo_ray.cli.main import main\n"
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
    # A test side with one user can show nothing.
    assert document["detectable"]["North"] is None
    assert "can show" in table.out
    # No terminal, no width: what reads it has each row on one line.
    assert max(map(len, table.out.splitlines())) > 80


def test_score_stores_the_global_models_rewards(scpo, config, tmp_path):
    document = json.loads(scpo("score", config, "--json").out)
    outcome = scpo("score", config)

    assert document["cultures"].keys() == {"North", "South"}
    assert document["num_texts"] == 192
    assert Path(document["path"]).parent == tmp_path / "runs" / "cache" / "scores"
    assert [p.name for p in Path(document["path"]).glob("part-*")] == ["part-000000"]
    assert outcome.err.endswith(f"scores: {document['path']}\n")
    # The tiny global model hardly tells responses apart: the paper's values do nothing to it.
    assert "tau: share of the training pairs kept" in outcome.out
    assert "filter_threshold 0.7 keeps 100.0 % of the pairs" in outcome.out
    assert set(document["cultures"]["North"]["margins"]["kept"]) >= {"0.5", "0.7"}


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
    assert document == json.loads(read_json(folder / "result.json", ""))


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


def test_a_mixtures_model_has_no_accuracy_of_one_culture():
    model = RegisteredModel("scpo-mix", 1, [], "id", "North, South", "scpo", None, "2026-01-01")

    with Console(width=200, record=True, file=io.StringIO()) as console:
        console.print(listings.model_table([model]))

    assert re.search(r"scpo-mix .* North, South +scpo +– +– +–", console.export_text())


def test_a_comparison_says_how_far_behind_the_best_and_whether_that_is_shown():
    _, result = comparison(methods=("global", "finetune", "scpo"))

    with Console(width=200, record=True, file=io.StringIO()) as console:
        console.print(tables.comparison_table(result))

    shown = console.export_text()
    assert re.search(r"scpo .* best ", shown)
    assert re.search(r"finetune .* -0\.6 \[-3\.6, 2\.4\] .*\n.* not distinguishable ", shown)
    assert re.search(r"global .* -4\.1 \[-7\.1, -1\.1\] .*\n.* behind ", shown)


# Data efficiency


def test_a_runs_file_becomes_a_sweep_over_shares_of_its_users(config, tmp_path):
    run = load_config(config, ["train.num_workers=2", "seed=4"])

    file = efficiency_file(run)

    sweep = load_sweep(file)
    check_space(sweep, file)
    assert sweep.space["culture"].grid == ["North"]
    assert sweep.space["data.data_fraction"].grid == [0.125, 0.25, 0.5, 0.75, 1.0]
    assert (sweep.repeat.seeds, sweep.resources.workers) == ([4, 5, 6], 2)
    assert sweep.run.train.max_steps == run.train.max_steps
    assert efficiency_file(run).read_text() == file.read_text()


def test_a_finished_sweep_over_shares_is_shown_with_its_curves_and_its_answer(
    scpo, tiny_reward_model, tmp_path
):
    document = tiny_document(tiny_reward_model, tmp_path / "runs")
    document.pop("culture_weights", None)
    space = {
        "culture": {"grid": ["North"]},
        "method": {"grid": ["finetune", "filter"]},
        "data.data_fraction": {"grid": [0.5, 1.0]},
    }
    file = write_yaml(tmp_path / "shares.yaml", {"run": document, "space": space})
    sweep = load_sweep(file)
    # Its trials, run one by one in this process: there is nothing left that would need Ray.
    for trial in trials_of(sweep, planned_settings(sweep), ["North"]):
        start_run(trial.config)

    outcome = scpo("efficiency", file)

    assert outcome.code == 0, outcome.err
    assert "all, macro, by share of the training users" in outcome.out
    assert len(re.findall(r"method=(?:finetune|filter) +(?:0.5|1) +\d+ +\d", outcome.out)) == 4
    # A few steps of a tiny model teach nothing that more pairs would show.
    assert "is not shown to be better with all its users than with the fewest" in outcome.err
    assert f"sweep file: {file}" in outcome.err


def test_without_shares_there_is_no_curve(scpo, tiny_reward_model, tmp_path):
    document = {
        "run": tiny_document(tiny_reward_model, tmp_path / "runs"),
        "space": {"method": {"grid": ["finetune", "scpo"]}},
    }

    outcome = scpo("efficiency", write_yaml(tmp_path / "methods.yaml", document))

    assert outcome.code == 2
    assert "space.data.data_fraction: must be a grid of two values or more" in outcome.err


# Export and evaluate


def as_evaluated(result):
    """What `scpo evaluate` says of the run's model, which has its temperatures with it."""
    parts = ("evaluation", "calibration", "best_of_n", "opinions")
    saved = {c: of | {"fitted_on": "saved"} for c, of in result["calibration"].items()}
    return {name: result[name] for name in parts} | {"calibration": saved, "warnings": []}


def test_an_exported_model_evaluates_to_the_runs_own_numbers(scpo, config, tmp_path):
    result = json.loads(scpo("train", config, "--json").out)
    exported = tmp_path / "exported"

    assert scpo("export", run_folder(tmp_path / "runs"), exported).code == 0
    of_export = json.loads(scpo("evaluate", exported, config, "--json").out)
    of_run = json.loads(scpo("evaluate", run_folder(tmp_path / "runs"), config, "--json").out)

    assert of_export == of_run == as_evaluated(result)
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
    evaluation = json.loads(scpo("evaluate", merged, config, "--json").out)["evaluation"]
    for culture, expected in result["evaluation"].items():
        assert evaluation[culture]["after"] == expected["after"]


def test_a_model_evaluates_to_its_runs_own_answer_shares(scpo, tiny_reward_model, tmp_path):
    config = write_yaml(tmp_path / "run.yaml", opinions_document(tmp_path, tiny_reward_model))
    result = json.loads(scpo("train", config, "--json").out)
    run, exported = run_folder(tmp_path / "runs", "scpo-South_Africa-s0"), tmp_path / "exported"
    assert scpo("export", run, exported).code == 0

    shown = scpo("evaluate", exported, config)
    documents = [
        json.loads(scpo("evaluate", model, config, "--json").out) for model in (run, exported)
    ]

    assert documents == [as_evaluated(result)] * 2
    assert shown.code == 0, shown.err
    for title in (
        "share of test pairs ranked right",
        "(options: all, ",
        "(options: drop_refusal, ",
    ):
        assert shown.out.count(title) == 1
    own = result["opinions"][0]["cultures"]["South Africa"]["model"]["value"]
    assert re.search(rf"South Africa +6 +6 +{100 * own:.1f} ", shown.out)


def test_what_cannot_be_exported_is_refused(scpo, config, tmp_path):
    scpo("train", config)

    merge = scpo("export", run_folder(tmp_path / "runs"), tmp_path / "new", "--merge")
    nothing = scpo("export", tmp_path / "runs", tmp_path / "new")

    assert (merge.code, merge.err) == (2, "the model has no adapters to merge\n")
    assert nothing.code == 2
    assert f"{tmp_path / 'runs'}: has no trained model" in nothing.err
    assert not (tmp_path / "new").exists()


def test_a_folder_without_runs_says_where_some_are(scpo, tmp_path):
    (tmp_path / "quickstart" / "experiment" / "run").mkdir(parents=True)
    (tmp_path / "quickstart" / "experiment" / "run" / "run.json").write_text("{}")

    for command in ("runs", "clean"):
        outcome = scpo(command, tmp_path)
        assert outcome.code == 0
        said = f"{tmp_path}: no runs in it; there are in {tmp_path / 'quickstart'}"
        assert said in outcome.err
        assert outcome.out == ""


@pytest.mark.parametrize("command", [("runs",), ("clean",), ("export",), ("report",)])
def test_a_folder_that_is_not_there_is_said_to_be_missing(scpo, tmp_path, command):
    others = [tmp_path / "out"] if command == ("export",) else []

    outcome = scpo(*command, tmp_path / "nosuch", *others)

    assert outcome.code == 2
    assert f"{tmp_path / 'nosuch'}: no such folder" in outcome.err
