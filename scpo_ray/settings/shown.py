"""How things are shown: texts without control characters and passwords, shares, times. Pure."""

import re
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import unquote

from scpo_ray.results import Difference, Estimate

# C0 and C1 but line breaks and tabs; what turns the direction of writing; separators of lines;
# marks and tags that show nothing; halves of characters, which no terminal's encoding has.
_STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
_WORDS = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+")
_SECRETS = {
    *("secret", "password", "passwd", "pwd", "pass", "passphrase", "passcode", "token", "auth"),
    *("authorization", "credential", "credentials", "signature", "sig", "bearer"),
    *("apikey", "accesskey", "secretkey", "accountkey", "sharedkey"),
}
_KEYS_OF = {"access", "api", "account", "encryption", "private", "secret", "shared", "storage"}
# "sslpassword", "mysecret": words that are written together.
_ENDS_IN_A_SECRET = re.compile(r"(?:password|passwd|passphrase|secret)$")
# An option's value may be options again: "connection_string=AccountKey=...".
_OPTION = re.compile(r"(?<![\w.-])([\w.-]+)\s*=\s*(?=[^&;#\s])")
_REMEDY = "is kept in files and shown on pages: leave it out and give it by the environment"
_VARIABLES = {
    "http": "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
    "mysql": "or a file of options (read_default_file)",
    "postgresql": "PGPASSWORD, or ~/.pgpass",
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
}


def plain(text: str) -> str:
    """The text with escapes for characters that steer a terminal; lines and tabs stay."""
    return _STEERING.sub(lambda match: _escape(ord(match[0])), text)


def steers(text: str) -> bool:
    """Whether `plain` would change it."""
    return _STEERING.search(text) is not None


def _escape(code: int) -> str:
    return (
        f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65_536 else f"\\U{code:08x}"
    )


def percent(estimate: Estimate | Difference | None, *, signed: bool = False) -> str:
    """In percent, with the interval where there is one: "62.1 [56.0, 68.2]"."""
    return number(estimate, signed=signed, factor=100)


def number(
    estimate: Estimate | Difference | None,
    *,
    signed: bool = False,
    factor: float = 1,
    digits: int = 1,
) -> str:
    """`factor` times the value, with the interval where there is one."""
    if estimate is None or estimate.value is None:
        return "–"
    value = f"{factor * estimate.value:{'+' if signed else ''}.{digits}f}"
    if estimate.low is None or estimate.high is None:
        return value
    low, high = factor * estimate.low, factor * estimate.high
    return f"{value} [{low:.{digits}f}, {high:.{digits}f}]"


def duration(seconds: float) -> str:
    """A time as people say it: "40 s", "12 min", "1.5 h"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3_600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3_600:.1f} h"


def is_secret_name(name: str) -> bool:
    """Whether a setting or an option called so holds a secret: "secret_key", "sasToken"."""
    words = [word.lower() for word in _WORDS.findall(name)]
    if not words:
        return False
    if words[-1] == "key":
        return len(words) == 1 or words[-2] in _KEYS_OF
    return words[-1] in _SECRETS or _ENDS_IN_A_SECRET.search(words[-1]) is not None


def password_fault(value: str, *, is_uri: bool = False) -> str | None:
    """Why a setting's value must not be kept: it is a URI with a password, or the like, in it.

    Args:
        is_uri: whether a value without "://" is meant as an address too.

    Returns: None if there is none; else a sentence that says where and what to do instead, and
    does not show the value.
    """
    scheme = value.partition(":")[0].lower().partition("+")[0]
    variables = _VARIABLES.get("http" if scheme == "https" else scheme, "")
    remedy = f"{_REMEDY}{f' ({variables})' if variables else ''}"
    for form in _decoded(value):
        is_bare = is_uri and "://" not in form
        if _has_password(f"x://{form.removeprefix('//')}" if is_bare else form):
            return f"holds a user's password or token before the @, which {remedy}"
        option = _secret_option(form)
        if option is not None and ("://" in value or is_uri):
            return f"holds a secret in its option {option}, which {remedy}"
    return None


def _decoded(value: str) -> Iterator[str]:
    """The value, and what it is behind percent signs; behind doubled ones too."""
    for _ in range(3):
        yield value
        if unquote(value) == value:
            return
        value = unquote(value)


def _has_password(text: str) -> bool:
    for match in re.finditer(r"([\w+.-]*)://", text):
        rest = text[match.end() :]
        authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
        user, at, _ = authority.rpartition("@")
        if at:
            # A server's user alone may be a token; a database's or a bucket's is a name.
            is_web = match[1].lower().rpartition("+")[2] in ("http", "https")
            if (user and is_web) or user.partition(":")[2]:
                return True
        elif "@" in rest and not authority.startswith("["):
            # A password with an unescaped / or ? in it; after a host there is a number.
            after = authority.partition(":")[2]
            if after and not after.isdecimal():
                return True
    return False


def _secret_option(text: str) -> str | None:
    options = re.split(r"[?#;]", text, maxsplit=1)[1:]
    names = (name for part in options for name in _OPTION.findall(part))
    return next((name for name in names if is_secret_name(name)), None)


def text_fault(text: str) -> str | None:
    """`password_fault` of the first such address anywhere in a file's text, comments too."""
    for number, line in enumerate(text.splitlines(), start=1):
        for address in re.findall(r"[\w+.:-]*://[^\s\"'<>]+", line):
            fault = password_fault(address)
            if fault is not None:
                return f"line {number}: {fault}"
    return None


def kept_secrets(document: Any, above: str = "") -> Iterator[str]:
    """ "<dotted setting>: <fault>" for each text in a document that holds a password."""
    if isinstance(document, dict):
        for name, value in document.items():
            yield from kept_secrets(value, f"{above}.{name}" if above else str(name))
    elif isinstance(document, list):
        for value in document:
            yield from kept_secrets(value, above)
    elif isinstance(document, str):
        fault = password_fault(document)
        if fault is not None:
            yield f"{above}: {fault}"


def line_without_secrets(line: str) -> str:
    """A line of settings, for showing, with "***" for the rest of it behind a secret's name."""
    for match in re.finditer(r"([\w.-]+)[\"']?\s*[:=]\s*\S", line):
        if is_secret_name(match[1]):
            return f"{line[: match.end() - 1]}***"
    return "***" if text_fault(line) or password_fault(line.partition("=")[2]) else line


def without_secrets(value: Any, name: str = "") -> Any:
    """The value, for showing, with "***" in place of what is a secret by its name or its form."""
    if isinstance(value, dict):
        return {key: without_secrets(below, str(key)) for key, below in value.items()}
    if isinstance(value, list):
        return [without_secrets(below, name) for below in value]
    if isinstance(value, str) and value and (is_secret_name(name) or password_fault(value)):
        return "***"
    return value


def threshold_text(threshold: float) -> str:
    """One win probability in six significant digits, or as many as tell it from 0.5 and 1."""
    return threshold_texts([threshold], digits=6)[0]


def threshold_texts(thresholds: Sequence[float], *, digits: int) -> list[str]:
    """Win probabilities in as many significant digits, `digits` at least, as tell them apart, and
    from 0.5 and 1: of small margins all are near 0.5, of large ones near 1."""
    values = [*thresholds, 0.5, 1.0]

    def texts(digits: int) -> list[str]:
        return [f"{value:.{digits}g}" for value in values]

    # 17 digits tell any two numbers apart.
    enough = next(n for n in range(digits, 18) if len(set(texts(n))) == len(set(values)))
    # One more: the last digit alone would move the share that a threshold keeps.
    return texts(enough if enough == digits else min(enough + 1, 17))[: len(thresholds)]
