"""The report in a real browser: no complaint on the console, pictures visible, films decoding."""

import html
import json
import re
import shutil
import subprocess

import pytest

from viditq.evaluation import Contest, shootout_lineup
from viditq.report import write_report

pytestmark = pytest.mark.browser

PROBE = """
<script>
addEventListener("load", () => setTimeout(() => {
  const seen = (element) => {
    const box = element.getBoundingClientRect();
    return { width: box.width, height: box.height, left: box.left, right: box.right };
  };
  const report = {
    pictures: [...document.querySelectorAll("img.sample")].map((image) => (
      { ...seen(image), natural: image.naturalWidth, complete: image.complete })),
    films: [...document.querySelectorAll("video")].map((film) => (
      { ...seen(film), natural: film.videoWidth, ready: film.readyState, paused: film.paused,
        error: film.error && film.error.code, seconds: film.duration })),
    drawings: [...document.querySelectorAll("svg")].map(seen),
    page: { width: document.documentElement.scrollWidth, window: innerWidth },
    differences: (() => {
      const shown = () => [...document.querySelectorAll("img.difference")]
        .filter((image) => image.offsetParent !== null).length;
      const box = document.querySelector("input.switch");
      if (!box) return null;
      const before = shown();
      box.click();
      return [before, shown(), document.querySelectorAll("img.difference").length];
    })(),
  };
  const out = document.createElement("pre");
  out.id = "probe";
  out.textContent = JSON.stringify(report);
  document.body.append(out);
}, 1500));
</script></body>
"""


def open_in_browser(page, folder, width=1280):
    """What the probe saw, and what the browser wrote to its console."""
    browser = next(
        path
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (path := shutil.which(name))
    )
    probed = folder / "probed.html"
    probed.write_text(page.read_text(encoding="utf-8").replace("</body>", PROBE), encoding="utf-8")
    run = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            f"--user-data-dir={folder / 'profile'}",
            f"--window-size={width},1600",
            "--virtual-time-budget=8000",
            "--enable-logging=stderr",
            "--dump-dom",
            probed.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = re.search(r'<pre id="probe">(.*?)</pre>', run.stdout, re.DOTALL)
    assert found, run.stderr[-2000:]
    console = [line for line in run.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(found.group(1))), console


def test_the_console_is_heard(tmp_path):
    page = tmp_path / "page.html"
    page.write_text("<html><body><script>nothing.at.all</script></body></html>")
    _, console = open_in_browser(page, tmp_path)
    assert any("nothing is not defined" in line for line in console)


def test_images(make_comparison, tmp_path):
    page = write_report(make_comparison(tmp_path, num=4), tmp_path)
    seen, console = open_in_browser(page, tmp_path)
    assert console == []
    assert len(seen["pictures"]) == 4 * 6
    for picture in seen["pictures"]:
        assert picture["complete"]
        assert picture["natural"] == 64
        assert picture["width"] == pytest.approx(seen["pictures"][0]["width"], abs=1)
        assert picture["width"] > 100
        assert picture["height"] == pytest.approx(picture["width"], abs=1)
    assert all(drawing["width"] > 50 for drawing in seen["drawings"])
    before, after, total = seen["differences"]
    assert (before, after) == (0, total)


def test_a_contest_of_many(make_comparison, tmp_path):
    """The figure is as wide as it says, and no picture gets too small to look at."""
    lineup = shootout_lineup("w4a8")
    names = tuple(recipe.name for recipe in lineup.recipes)
    comparison = make_comparison(tmp_path, num=2, names=names)
    page = write_report(comparison, tmp_path, Contest.of(lineup, comparison))
    seen, console = open_in_browser(page, tmp_path)
    assert console == []
    assert min(picture["width"] for picture in seen["pictures"]) > 140
    assert seen["page"]["width"] <= seen["page"]["window"]
    assert max(drawing["width"] for drawing in seen["drawings"]) > 800


def test_films(make_comparison, tmp_path):
    page = write_report(make_comparison(tmp_path, kind="video", num=2), tmp_path)
    for _ in range(3):  # the page's clock is virtual, decoding is not: a busy machine may be late
        seen, console = open_in_browser(page, tmp_path)
        assert console == []
        if all(film["ready"] >= 2 and not film["paused"] for film in seen["films"]):
            break
    assert len(seen["films"]) == 2 * 6
    for film in seen["films"]:
        assert film["error"] is None
        assert film["ready"] >= 2  # a frame is decoded
        assert film["natural"] == 256
        assert film["seconds"] == pytest.approx(1.0, abs=0.01)  # 8 frames at 8 a second
        assert film["width"] > 100
        assert not film["paused"]


def test_phone(make_comparison, tmp_path):
    """Nothing but tables and the wide figure needs to be pushed sideways, each in its own box."""
    pair = [make_comparison(tmp_path / kind, kind=kind, num=2) for kind in ("image", "video")]
    seen, console = open_in_browser(write_report(pair, tmp_path), tmp_path, width=500)
    assert console == []
    assert seen["page"]["width"] <= seen["page"]["window"]
    assert all(picture["right"] <= 500 for picture in seen["pictures"])
