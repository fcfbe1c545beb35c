"""The server, as a command starts it: who may ask, on which devices, for which models."""

import ipaddress
import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from scpo_ray.records import InputError
from scpo_ray.serve.choices import read_models
from scpo_ray.settings.files import load_section
from scpo_ray.settings.serve import ServeConfig

if TYPE_CHECKING:
    from scpo_ray.serve.service import Source

log = logging.getLogger(__name__)

TOKEN_VARIABLE = "SCPO_TOKEN"


def serve(
    models: Sequence[str],
    *,
    base: str | None,
    uri: str,
    host: str,
    port: int,
    devices: Sequence[str],
    token_file: Path | None,
    without_token: bool,
    overrides: Sequence[str],
) -> None:
    """Serves until it is told to stop.

    Args:
        models: "CULTURE=MODEL" or "CULTURE=MODEL,MODEL" each.
        devices: one process for each; none: all GPUs, or else the CPU.
        overrides: "setting=value" of `ServeConfig`.

    Raises: InputError; supervisor.ServerDiedError.
    """
    from scpo_ray.serve.logs import log_as_json
    from scpo_ray.serve.server import Served
    from scpo_ray.serve.supervisor import listen, supervise

    config = load_section(ServeConfig, overrides)
    named = read_models(models)
    token = None if without_token else server_token(token_file)
    if token is None and not is_loopback(host):
        raise InputError(f"--no-auth: only on this machine's own address, not on {host}")
    served = Served(partial(_source, named, base, uri, config), token, config)
    with listen(host, port) as listener:
        log_as_json()
        supervise(served, devices or _all_devices(), listener)


def _source(
    models: Mapping[str, Sequence[str]],
    base: str | None,
    uri: str,
    config: ServeConfig,
    device: str,
) -> "Source":
    """In a process that has a device: the first to load what computes."""
    from scpo_ray.serve.champions import culture_source

    return culture_source(models, base, uri, config, device)


def _all_devices() -> list[str]:
    from scpo_ray.models.reward_model import all_devices

    return all_devices()


def server_token(file: Path | None) -> str:
    """The token in a file, else that of SCPO_TOKEN, else a new one, which is logged once.

    Raises: InputError if it cannot be read or is shorter than 16 characters.
    """
    if file is not None:
        try:
            token = file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise InputError(f"--token-file {file}: cannot be read", [str(error)]) from None
        place = f"--token-file {file}"
    elif TOKEN_VARIABLE in os.environ:
        token, place = os.environ[TOKEN_VARIABLE], TOKEN_VARIABLE
    else:
        token = secrets.token_urlsafe(32)
        log.info("no --token-file and no %s, so a token of this start: %s", TOKEN_VARIABLE, token)
        return token
    if len(token) < 16 or not token.isascii() or not token.isprintable() or " " in token:
        raise InputError(f"{place}: must hold at least 16 printable characters, no blanks")
    return token


def is_loopback(host: str) -> bool:
    """Whether an address is reached from its own machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
