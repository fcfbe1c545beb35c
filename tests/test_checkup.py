"""What `scpo doctor` finds on this machine, and on ones that lack something."""

import json
import socket

import pytest

from scpo_ray.commands import checkup as doctor
from scpo_ray.settings.run import RunConfig


def finding(what, config=None):
    found = doctor.checkup(config or RunConfig())
    return next(each for each in found if each.what == what)


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(doctor, "hub_address", lambda: ("http://127.0.0.1:9", False))


def test_a_machine_on_which_the_tests_run_lacks_nothing(scpo, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(f"output_dir: {tmp_path / 'runs'}")

    table, document = scpo("doctor", config), scpo("doctor", config, "--json")

    found = {each["what"]: each for each in json.loads(document.out)}
    assert table.code == document.code == 0
    assert found["torch"]["verdict"] == found["disk"]["verdict"] == "fine"
    assert "the first run makes it" in found["tracking"]["found"]
    assert "processor" in table.out
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [("no-such-package>=2", "not installed"), ("torch>=99", "2.")],
)
def test_a_package_that_is_missing_or_too_old_is_a_fault_with_its_remedy(monkeypatch, line, said):
    monkeypatch.setattr(doctor, "requires", lambda _: [line, "other; extra == 'dev'"])

    found = finding(line.partition(">")[0])

    assert found.verdict == "fault"
    assert found.found.startswith(said)
    assert found.remedy == f"pip install '{line}'"


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "127.0.0.1:many"])
def test_a_cluster_that_does_not_answer_is_a_fault(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)

    found = finding("Ray cluster")

    assert found.verdict == "fault" and address in found.found
    assert "cluster/README.md" in found.remedy


def test_a_cluster_that_answers_is_fine(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.getsockname()[1]}")

        assert finding("Ray cluster").verdict == "fine"


def test_a_store_that_cannot_be_used_is_a_fault_of_the_machine(tmp_path):
    (tmp_path / "mlflow.db").write_text("no database")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"

    found = finding("tracking", RunConfig.model_validate({"tracking": {"uri": uri}}))

    assert found.verdict == "fault" and uri in found.found


def test_a_hub_out_of_reach_is_told_with_what_works_without_it(offline):
    found = finding("hub")

    assert found.verdict == "note"
    assert "cannot be reached" in found.found and "HF_ENDPOINT" in found.remedy


def test_a_fault_ends_the_command_with_2(scpo, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")

    outcome = scpo("doctor")

    assert outcome.code == 2
    assert "1 to mend" in outcome.err


def test_the_version_needs_no_command(scpo):
    outcome = scpo("--version")

    assert (outcome.code, outcome.out) == (0, "scpo_ray 0.1.0\n")
