"""The report in a real browser, at desktop and phone width."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from matplotlib import image

from evaluation.report import write_report
from tests.evaluation.synthetic import make_run

QUIET = (
    "--headless --no-sandbox --disable-gpu --hide-scrollbars --no-first-run"
    " --disable-background-networking --disable-component-update --disable-sync --disable-quic"
).split()


@pytest.mark.parametrize("width", [1280, 500])
def test_the_page_shows_in_a_browser(debian_program, tmp_path: Path, width: int):
    chromium = debian_program("chromium", "chromium")
    page = write_report(make_run(tmp_path / "run", 12))
    picture = tmp_path / "page.png"
    shown = subprocess.run(
        [
            chromium,
            *QUIET,
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},2000",
            f"--screenshot={picture}",
            "--enable-logging=stderr",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in shown.stderr
    pixels_HWC = image.imread(picture)
    assert pixels_HWC.shape[:2] == (2000, width)
    # Something is drawn on most of the page: text, rules and curves, in more than two shades.
    drawn_H = (pixels_HWC.reshape(2000, -1).std(axis=1) > 0.01).mean()
    assert drawn_H > 0.3
