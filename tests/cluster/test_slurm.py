"""cluster/slurm.sh on a Slurm of two machines, started here for the test and ended after it."""

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "cluster" / "slurm.sh"
TIMEOUT_S = 240

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.skipif(
        not all(shutil.which(name) for name in ("slurmctld", "slurmd", "sbatch", "srun")),
        reason="needs Slurm (Debian: slurmctld slurmd slurm-client)",
    ),
]

# No privileges, no authentication, no cgroups, and both machines are this one. A job that goes back
# into the queue waits there for as long as a credential lives.
CONFIG = """\
ClusterName=scpo-test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
AuthInfo=cred_expire=10
CredType=cred/none
SlurmctldPort={ports[0]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/linear
MpiDefault=none
KillWait=30
FirstJobId={first_job}
JobRequeue=1
NodeName=one NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName=two NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
PartitionName=all Nodes=ALL Default=YES State=UP
"""

# Counts what the cluster has, uses it all, and on its first attempt waits to be stopped.
PROGRAM = """\
import os, sys, time
import ray

ray.init(logging_level="ERROR")
alive = sum(node["Alive"] for node in ray.nodes())
print(f"machines {alive}, CPUs {ray.cluster_resources()['CPU']:g}", flush=True)


@ray.remote(num_cpus=1)
def where():
    time.sleep(1)
    return ray.get_runtime_context().get_node_id()


print("used", len(set(ray.get([where.remote() for _ in range(4)]))), flush=True)
code, waits = int(sys.argv[1]), sys.argv[2] == "waits"
if waits and os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
    print("waiting", flush=True)
    try:
        time.sleep(600)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        raise SystemExit(130)
print("done", flush=True)
raise SystemExit(code)
"""


@dataclass(frozen=True)
class Slurm:
    folder: Path
    environment: dict[str, str]

    def run(self, *command: str) -> str:
        done = subprocess.run(
            command, env=self.environment, cwd=self.folder, capture_output=True, text=True
        )
        return (done.stdout + done.stderr).strip()

    def submit(self, *arguments: str) -> str:
        """The number of a job that runs the program on both machines."""
        program = self.folder / "program.py"
        program.write_text(PROGRAM)
        command = ["sbatch", "--parsable", "--nodes=2", str(SCRIPT), sys.executable, str(program)]
        job = self.run(*command, *arguments)
        assert job.isdigit(), job
        return job

    def output(self, job: str) -> str:
        path = self.folder / f"slurm-{job}.out"
        return path.read_text() if path.exists() else ""

    def logs(self) -> list[Path]:
        """What the jobs' Rays have left."""
        jobs = [path.stem.removeprefix("slurm-") for path in self.folder.glob("slurm-*.out")]
        return [path for job in jobs for path in Path("/tmp").glob(f"ray-{job}-*")]

    def state(self, job: str) -> dict[str, str]:
        words = self.run("scontrol", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_until(self, condition: Callable[[], bool], job: str, what: str) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not come: {self.output(job)}"
            time.sleep(0.2)

    def wait_for_end(self, job: str) -> dict[str, str]:
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.wait_until(lambda: self.state(job).get("JobState") in ended, job, "the job's end")
        return self.state(job)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "one", "two"):
        (folder / name).mkdir()
    config = CONFIG.format(
        host=socket.gethostname(),
        user=getpass.getuser(),
        folder=folder,
        ports=free_ports(3),
        first_job=60_000 + os.getpid() % 5_000,
    )
    (folder / "slurm.conf").write_text(config)
    environment = {
        name: value
        for name, value in os.environ.items()
        # pytest's own cluster is none of the job's.
        if not name.startswith(("RAY_", "SLURM_"))
    }
    environment |= {
        "SLURM_CONF": str(folder / "slurm.conf"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "VIRTUAL_ENV": sys.prefix,
    }
    commands = [["slurmctld", "-D"], ["slurmd", "-D", "-N", "one"], ["slurmd", "-D", "-N", "two"]]
    daemons = []
    with (folder / "daemons.log").open("w") as log:
        for command in commands:
            daemons.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    slurm = Slurm(folder, environment)
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while slurm.run("sinfo", "--noheader", "--states=idle", "--format=%D") != "2":
            assert time.monotonic() < deadline, (folder / "daemons.log").read_text()
            time.sleep(0.2)
        yield slurm
    finally:
        for job in slurm.run("squeue", "--noheader", "--format=%A").split():
            slurm.run("scancel", job)
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(timeout=TIMEOUT_S)
        for logs in slurm.logs():
            shutil.rmtree(logs)


def processes_of(job: str) -> list[str]:
    """Command lines of what still runs in a job's Ray."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if f"/tmp/ray-{job}-" in line:
            found.append(line)
    return found


def test_a_command_gets_all_machines_and_its_exit_code_is_the_jobs(slurm):
    job = slurm.submit("3", "ends")

    state = slurm.wait_for_end(job)

    output = slurm.output(job)
    assert "machines 2, CPUs 2\nused 2\ndone\n" in output, output
    assert state["JobState"] == "FAILED" and state["ExitCode"] == "3:0", output
    assert not processes_of(job)


def test_a_job_whose_time_is_nearly_up_stops_and_goes_on_from_the_queue(slurm):
    job = slurm.submit("0", "waits")
    slurm.wait_until(lambda: "waiting" in slurm.output(job), job, "the command")

    slurm.run("scancel", "--batch", "--signal=USR1", job)  # what --signal=B:USR1@180 sends
    state = slurm.wait_for_end(job)

    output = slurm.output(job)
    assert output.count("machines 2, CPUs 2") == 2, output
    assert output.index("interrupted") < output.index("attempt 1") < output.index("done"), output
    assert state["JobState"] == "COMPLETED" and state["Restarts"] == "1"
    assert not processes_of(job)
    assert not list(Path("/tmp").glob(f"ray-{job}-*"))


def test_a_cancelled_job_ends_for_good_and_leaves_nothing_running(slurm):
    job = slurm.submit("0", "waits")
    slurm.wait_until(lambda: "waiting" in slurm.output(job), job, "the command")

    slurm.run("scancel", job)
    state = slurm.wait_for_end(job)

    assert state["JobState"] == "CANCELLED"
    slurm.wait_until(lambda: not processes_of(job), job, "the end of its processes")
    assert "done" not in slurm.output(job)
