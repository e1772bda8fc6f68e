"""Draws ``docs/ship.png``: the top of the page that ``make demo`` leaves of the models it ships, as a browser shows it.

Needs Chromium or Chrome. Run it in the root of the repository, after ``make demo``: ``python docs/pictures/ship.py``.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PAGE, WIDTH, HEIGHT = Path("demo-output/ship-0/index.html"), 1120, 830
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def draw(page: Path, out: Path) -> None:
    """Draws the picture.

    Args:
        page: HTML file.
        out: PNG file to write.
    """
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        sys.exit(f"none of {', '.join(BROWSERS)} is installed")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
    with tempfile.TemporaryDirectory() as profile:
        flags += [f"--user-data-dir={profile}", f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={out.absolute()}"]
        subprocess.run([browser, *flags, page.absolute().as_uri()], check=True, capture_output=True)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE, Path(__file__).parents[1] / "ship.png")
