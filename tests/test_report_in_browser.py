"""The report as a browser lays it out: no error, no request, no overflow."""

import json
import shutil
import subprocess

import pytest
from test_report import make_workdir, report_of

from daaa_jax.paper import cells as cells_of
from daaa_jax.paper import figures, summary

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

# Runs in a copy of the page: lays it out at a width, and writes its findings as text.
PROBE = """
<script>
const errors = [];
window.onerror = message => errors.push(String(message));
window.addEventListener("load", () => {
  document.documentElement.style.width = WIDTH + "px";
  document.querySelectorAll("details").forEach(details => details.open = true);
  const name = element => element.tagName + " " + element.textContent.trim().slice(0, 40);
  const wide = [...document.body.querySelectorAll("*")].filter(element =>
    element.getBoundingClientRect().right > WIDTH + 0.5 && !element.closest(".wide"));
  const clipped = [...document.querySelectorAll("svg text")].filter(text => {
    const inner = text.getBoundingClientRect();
    const outer = text.closest("svg").getBoundingClientRect();
    return inner.left < outer.left - 0.5 || inner.right > outer.right + 0.5
      || inner.top < outer.top - 0.5 || inner.bottom > outer.bottom + 0.5;
  });
  const asked = performance.getEntriesByType("resource").map(entry => entry.name);
  const found = document.createElement("pre");
  found.id = "found";
  found.textContent = JSON.stringify({
    errors, wide: wide.map(name), clipped: clipped.map(name),
    asked: asked.filter(address => !address.startsWith("data:")),
    charts: document.querySelectorAll("svg").length,
  });
  document.body.append(found);
});
</script>
"""


def laid_out(page: str, width: int, folder) -> dict:
    probed = folder / f"at-{width}.html"
    probe = PROBE.replace("WIDTH", str(width))
    probed.write_text(page.replace("<head>", f"<head>{probe}", 1))
    flags = ("--headless", "--no-sandbox", "--disable-gpu", f"--window-size={max(width, 500)},900")
    done = subprocess.run(
        [CHROMIUM, *flags, f"--user-data-dir={folder}/profile", "--dump-dom", probed.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    _, _, rest = done.stdout.partition('<pre id="found">')
    assert rest, done.stderr
    return json.loads(rest.partition("</pre>")[0].replace("&amp;", "&").replace("&lt;", "<"))


NOTHING = {"errors": [], "wide": [], "clipped": [], "asked": []}


@pytest.mark.parametrize("width", [375, 1440])
def test_nothing_overflows_and_nothing_is_requested(width, tmp_path):
    name = "a class whose name is much longer than there is room for in any chart of this page"
    page = report_of(make_workdir(tmp_path / "run", name=name))
    found = laid_out(page, width, tmp_path)
    assert found["charts"] > 5
    assert {key: found[key] for key in NOTHING} == NOTHING


@pytest.mark.parametrize("width", [375, 1440])
def test_nothing_overflows_the_page_of_a_sweep(width, tmp_path):
    (tmp_path / "runs").mkdir()
    make_workdir(tmp_path / "runs" / ("digits-embedded-" + "adapt.round_steps=150-" * 9))
    cells = ["81.5 ± 0.5 [2 of 3 seeds]"] * 9
    summary.Sheet("Table 2", cells, [cells], []).write(tmp_path / "table2")
    figures.write("fig4", ["MNIST->MNIST-M"], cells_of.Plan("embedded"), tmp_path)
    found = laid_out(report_of(tmp_path), width, tmp_path)
    assert {key: found[key] for key in NOTHING} == NOTHING


def test_probe_finds_every_kind_of_fault(tmp_path):
    """On a page with one fault of each kind."""
    page = (
        '<!doctype html><html><head></head><body style="margin:0">'
        '<img src="http://127.0.0.1:9/nowhere.png"><p style="width:900px">wide</p>'
        "<script>undefined.x</script>"
        '<svg width="50" height="20"><text x="0" y="15">longer than its chart</text></svg>'
        "</body></html>"
    )
    found = laid_out(page, 375, tmp_path)
    assert found["errors"] and "P wide" in found["wide"]
    assert len(found["clipped"]) == 1 and found["asked"][0].endswith("nowhere.png")
