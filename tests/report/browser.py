"""A report in a real browser."""

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from html import unescape
from pathlib import Path
from typing import Any

import pytest

# Runs in the page: where things lie, and what a click on a header does.
LOOK = """
addEventListener("load", () => {
  const names = () => [...table.tBodies[0].rows].map((row) => row.cells[0].title);
  const answer = document.querySelector(".answer");
  const table = answer.querySelector("table");
  const header = table.tHead.rows[0].cells[PLACE];
  const found = {
    width: innerWidth,
    scroll: document.documentElement.scrollWidth,
    bottom: answer.getBoundingClientRect().bottom,
    before: names(),
  };
  header.click();
  found.down = names();
  header.click();
  found.up = names();
  location.hash = "#data";
  const pick = document.querySelector(".pick input");
  if (pick) pick.click();
  found.hidden = [...table.tBodies[0].rows].filter((row) => row.hidden).length;
  setTimeout(() => {
    const topic = document.getElementById("data");
    found.opened = topic ? topic.closest("details").open : null;
    parent.postMessage(JSON.stringify(found), "*");
  }, 50);
});
"""


# No window is narrower than 500 pixels; a frame can be.
FRAME = """<!doctype html><title>frame</title>
<iframe src="SOURCE" style="border: 0; width: WIDTHpx; height: 900px"></iframe>
<script>
addEventListener("message", (event) => {
  const said = document.createElement("pre");
  said.id = "found";
  said.textContent = event.data;
  document.body.append(said);
});
</script>"""


def assert_shown_without_a_complaint(page: Path, profile: Path, sections: Sequence[str]) -> None:
    """Opens `page` with a fresh `profile` folder; skips where there is no browser."""
    shown = _dom(page, profile, width=1280)

    assert all(f'id="{section}"' in shown for section in sections)
    assert shown.count("<svg") == page.read_text().count("<svg")


def looked_at(page: Path, folder: Path, *, width: int, column: int) -> dict[str, Any]:
    """What a page of `width` pixels shows, and what clicks on the answer's `column` do to it."""
    copy = folder / f"looked-at-{width}.html"
    script = f"<script>{LOOK.replace('PLACE', str(column))}</script></body>"
    copy.write_text(page.read_text().replace("</body>", script))
    frame = folder / f"frame-{width}.html"
    frame.write_text(FRAME.replace("SOURCE", copy.name).replace("WIDTH", str(width)))
    shown = _dom(frame, folder / f"profile-{width}", width=1400)
    found = re.search(r'<pre id="found">(.*?)</pre>', shown, re.S)
    assert found, "the page's script did not come to its end"
    return json.loads(unescape(found[1]))


def _dom(page: Path, profile: Path, *, width: int) -> str:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if browser is None:
        pytest.skip("no chromium on this machine")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    options += [f"--user-data-dir={profile}", "--enable-logging=stderr", "--dump-dom"]
    options += [f"--window-size={width},900", "--virtual-time-budget=2000"]

    shown = subprocess.run(
        [browser, *options, page.as_uri()], capture_output=True, text=True, timeout=120
    )

    assert shown.returncode == 0
    assert "CONSOLE" not in shown.stderr
    return shown.stdout
