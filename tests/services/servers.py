"""A PostgreSQL, an S3 and an MLflow server of the test's own, on this machine, stopped at its end.

PostgreSQL is Debian's (`apt-get install --no-install-recommends postgresql`), the rest is the extra
`services`. Each is a real process: one can be killed, halted and started again.
"""

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TIMEOUT_S = 180
AWS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def postgres_programs() -> Path | None:
    """The newest Debian has, which keeps them out of PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[4]))
    return found[-1].parent if found else None


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@dataclass
class Server:
    """A process and all it has started, at one address whatever becomes of it."""

    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    url: str
    health: str
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=os.environ | self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + TIMEOUT_S
        while not self._answers():
            assert self.process.poll() is None, (self.folder / "log").read_text()[-2_000:]
            assert time.monotonic() < deadline, f"{self.url} does not answer"
            time.sleep(0.1)

    def signal(self, number: int) -> None:
        """To the whole group: a server's workers would go on without it."""
        assert self.process is not None
        os.killpg(self.process.pid, number)
        if number == signal.SIGKILL:
            self.process.wait()
            self.process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.url + self.health, timeout=2):
                return True
        except (OSError, urllib.error.URLError):
            return False


@contextmanager
def running(server: Server) -> Iterator[Server]:
    server.folder.mkdir(parents=True)
    server.start()
    try:
        yield server
    finally:
        if server.process is not None:
            server.signal(signal.SIGKILL)


@contextmanager
def postgres(programs: Path, password: str) -> Iterator[str]:
    """SQLAlchemy's URI of a cluster with the databases `mlflow` and `auth`, user `mlflow`."""
    # It refuses to run as root, and must reach its folder.
    as_root = os.getuid() == 0
    user = {"user": "postgres", "group": "postgres", "extra_groups": []} if as_root else {}
    # Not below pytest's folders, which are for the user alone who runs the tests.
    folder = Path(tempfile.mkdtemp(prefix="scpo-postgres-"))
    (folder / "password").write_text(password)
    if as_root:
        owner = pwd.getpwnam("postgres")
        for path in (folder, folder / "password"):
            os.chown(path, owner.pw_uid, owner.pw_gid)

    def run(*command: str | Path) -> None:
        subprocess.run(
            command, cwd=folder, check=True, stdout=subprocess.DEVNULL, timeout=TIMEOUT_S, **user
        )

    data, port = folder / "data", free_port()
    initdb = [programs / "initdb", "-D", data, "-U", "mlflow", f"--pwfile={folder / 'password'}"]
    run(*initdb, "--auth=scram-sha-256", "-E", "UTF8", "--locale=C.UTF-8", "-N")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories=''"
    control = [programs / "pg_ctl", "-D", data, "-l", folder / "log", "-w"]
    run(*control, "-o", options, "start")
    try:
        for name in ("mlflow", "auth"):
            subprocess.run(
                [programs / "createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "mlflow", name],
                env=os.environ | {"PGPASSWORD": password},
                check=True,
                timeout=TIMEOUT_S,
            )
        # The driver is named: which one plain postgresql:// means depends on SQLAlchemy.
        yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}"
    finally:
        run(*control, "-m", "immediate", "stop")
        shutil.rmtree(folder)


def bucket_server(folder: Path) -> Server:
    port = free_port()
    return Server(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        {},
        folder,
        f"http://127.0.0.1:{port}",
        "/moto-api/data.json",
    )


def mlflow_server(folder: Path, database: str, bucket_url: str, password: str) -> Server:
    """Asks for the password; its database's it gets by PGPASSWORD."""
    port = free_port()
    config = folder.with_name("auth.ini")
    # Without the cache each request takes 0.1 to 0.3 s.
    config.write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {database}/auth\n"
        "admin_username = admin\nauth_cache_ttl_seconds = 60\n"
    )
    return Server(
        [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"),
            *("--port", str(port), "--app-name", "basic-auth"),
            *("--artifacts-destination", "s3://mlflow/artifacts"),
        ],
        AWS
        | {
            "AWS_ENDPOINT_URL": bucket_url,
            "PGPASSWORD": password,
            "MLFLOW_BACKEND_STORE_URI": f"{database}/mlflow",
            "MLFLOW_AUTH_CONFIG_PATH": str(config),
            "MLFLOW_AUTH_ADMIN_PASSWORD": password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(),
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        },
        folder,
        f"http://127.0.0.1:{port}",
        "/health",
    )
