"""How the tests are spread over the processes of `pytest -n`, and in which order they are begun."""

from xdist.scheduler import LoadScopeScheduling

# A file's tests go to one process, since they share what they make. Files below have more in
# common: a local Ray, of which two at once get in each other's way, a group of workers, a store.
# The longest path counts; the first group is begun first, as the longest.
GROUPS = {
    "tests/cluster/": "ray",
    "tests/launch/": "ray",
    "tests/services/": "ray",
    "tests/serve/test_files_on_ray.py": "ray",
    "tests/serve/test_ray_app.py": "ray",
    "tests/launch/test_bad_places.py": "bad places",
    "tests/launch/test_stopped_runs.py": "stopped runs",
    "tests/launch/test_resume_elsewhere.py": "workers",
    "tests/launch/test_worker.py": "workers",
    "tests/methods/test_fit_heads.py": "workers",
    "tests/test_workers.py": "workers",
    "tests/training/test_trajectories.py": "workers",
    "tests/tracking/": "mlflow",
}
ORDER = ["ray", "workers", "mlflow", "stopped runs"]


def group_of(test: str) -> str:
    """The group of a test by its id; where no other is named, its file."""
    file = test.partition("::")[0]
    known = [path for path in GROUPS if file.startswith(path)]
    return GROUPS[max(known, key=len)] if known else file


def place_of(group: str) -> int:
    return ORDER.index(group) if group in ORDER else len(ORDER)


class InGroups(LoadScopeScheduling):
    """Gives a process a group at a time."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
