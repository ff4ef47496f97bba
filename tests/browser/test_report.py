"""The page of `npu explain --html` in a real browser: it loads without an error, shows what it should, and answers the pointer.

A stage of `cargo xtask test --all`: it needs Chromium, which Debian has as a package and no Python package brings.
"""

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import onnx
import pytest

ROOT = Path(__file__).resolve().parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
DEADLINE_S = 120
# What a script at the end of the page finds out: it runs after the page's own.
PROBE = """
<script>(()=>{const found={};const boxes=[...document.querySelectorAll('#graph g>rect:first-child')].map(r=>r.getBoundingClientRect());
let overlaps=0;for(let i=0;i<boxes.length;i++)for(let j=i+1;j<boxes.length;j++){const a=boxes[i],b=boxes[j];
if(a.left<b.right&&b.left<a.right&&a.top<b.bottom&&b.top<a.bottom)overlaps++}
found.boxes=boxes.length;found.overlaps=overlaps;
const svg=document.querySelector('#graph').getBoundingClientRect();
found.outside=boxes.filter(b=>b.right>svg.right||b.bottom>svg.bottom||b.left<svg.left||b.top<svg.top).length;
found.wide=document.documentElement.scrollWidth>innerWidth;
const over=at=>{const r=at.getBoundingClientRect();at.dispatchEvent(new PointerEvent('pointermove',{bubbles:true,clientX:r.left+1,clientY:r.top+1}));
const tip=document.getElementById('tip');return tip.hidden?null:tip.textContent};
const host=document.querySelector('#graph rect.host');found.host=host&&over(host);
found.npu=over(document.querySelector('#graph rect.p0'));
found.bars=document.querySelectorAll('svg.cycles rect').length;found.layers=document.querySelectorAll('svg.layers rect').length;
found.tensors=document.querySelectorAll('svg.memory rect').length;
const paper=()=>getComputedStyle(document.body).backgroundColor;const before=paper();document.getElementById('theme').click();
found.themes=before!==paper();found.ready=document.documentElement.dataset.ready;found.broken=window.broken===1;
found.loaded=performance.getEntriesByType('resource').length;
const out=document.createElement('pre');out.id='found';out.textContent=JSON.stringify(found);document.body.append(out)})()</script>
"""


@pytest.fixture(scope="session")
def browser() -> str:
    named = os.environ.get("NPU_BROWSER")
    found = named or next(filter(None, map(shutil.which, BROWSERS)), None)
    assert found, f"no browser: install Chromium (Debian's package `chromium`), or name one in NPU_BROWSER; looked for {BROWSERS}"
    return found


@pytest.fixture(scope="session")
def tool() -> str:
    path = os.environ.get("NPU_TOOL", "")
    assert Path(path).is_file(), f"NPU_TOOL is {path!r}, which is no file; `cargo xtask test --all` builds the tool and sets it"
    return path


class Found(HTMLParser):
    """The text of the element that the probe leaves."""

    def __init__(self):
        super().__init__()
        self.inside, self.text = False, ""

    def handle_starttag(self, tag, attributes):
        self.inside = dict(attributes).get("id") == "found"

    def handle_data(self, data):
        if self.inside:
            self.text += data


def page(tool: str, browser: str, folder: Path, model: Path, names_are_hostile: bool = False) -> tuple[dict, dict]:
    """The report as JSON, and what the probe found on its page."""
    file = folder / "report.html"
    done = subprocess.run([tool, "explain", model, "--json", "--html", file], capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr
    text = file.read_text()
    if not names_are_hostile:
        assert not re.search(r"(?:src|href)\s*=|url\(|@import|https?://", text), "the page asks for something from elsewhere"
    assert text.count("</body>") == 1
    file.write_text(text.replace("</body>", PROBE + "</body>"))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1220,1500", f"--user-data-dir={folder / 'profile'}"]
    options += ["--enable-logging=stderr", "--dump-dom", file.as_uri()]
    shown = subprocess.run([browser, *options], capture_output=True, text=True, timeout=DEADLINE_S)
    assert shown.returncode == 0, shown.stderr
    told = [line for line in shown.stderr.splitlines() if "CONSOLE" in line]
    assert not told, f"the page wrote to the console: {told}"
    found = Found()
    found.feed(shown.stdout)
    assert found.text, "the page's scripts did not run to their end"
    return json.loads(done.stdout), json.loads(found.text)


def check(report: dict, found: dict) -> None:
    operators = [node for node in report["nodes"] if node["op"] not in ("QuantizeLinear", "DequantizeLinear")]
    assert found["ready"] == "yes" and found["themes"] and not found["wide"] and found["loaded"] == 0
    assert found["boxes"] >= len(operators) and found["overlaps"] == 0 and found["outside"] == 0
    assert found["bars"] > 0 and found["layers"] > 0
    assert "program 0" in found["npu"]
    left = any(not node["taken"] for node in operators)
    assert ("on the host [" in found["host"]) if left else (found["host"] is None)


def test_the_report_of_a_text_detector_shows_hundreds_of_operators(tool, browser, tmp_path):
    model = ROOT / ".models/ppocrv4-det.qdq-pc.onnx"
    assert model.is_file(), f"no {model}; run `cargo xtask models --all`"
    report, found = page(tool, browser, tmp_path, model)
    check(report, found)
    assert found["boxes"] > 250 and found["tensors"] > 50


def test_the_report_of_a_small_model_is_whole(tool, browser, tmp_path):
    report, found = page(tool, browser, tmp_path, ROOT / "tests/models/digits.qdq.onnx")
    check(report, found)
    assert report["cuts"] == []


def test_names_in_a_model_are_text_on_the_page(tool, browser, tmp_path):
    model = onnx.load(ROOT / "tests/models/digits.qdq.onnx")
    pool = next(node for node in model.graph.node if node.op_type == "MaxPool")
    pool.op_type = "LpPool"
    for node in model.graph.node:
        node.name += "\"'><script>window.broken=1</script><img src=x onerror=window.broken=1>"
    file = tmp_path / "model.onnx"
    onnx.save(model, file)
    report, found = page(tool, browser, tmp_path, file, names_are_hostile=True)
    check(report, found)
    assert not found["broken"]
