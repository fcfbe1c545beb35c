"""A report in a real browser."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest


def assert_shown_without_a_complaint(page: Path, profile: Path, sections: Sequence[str]) -> None:
    """Opens `page` with a fresh `profile` folder; skips where there is no browser."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if browser is None:
        pytest.skip("no chromium on this machine")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    options += [f"--user-data-dir={profile}", "--enable-logging=stderr", "--dump-dom"]

    shown = subprocess.run(
        [browser, *options, page.as_uri()], capture_output=True, text=True, timeout=120
    )

    assert shown.returncode == 0
    assert "CONSOLE" not in shown.stderr
    assert all(f'id="{section}"' in shown.stdout for section in sections)
    assert shown.stdout.count("<svg") == page.read_text().count("<svg")
