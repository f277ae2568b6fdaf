"""The HTML report: what is in the file, and what a browser makes of it from disk with the network off."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

from effprof.analysis.analyze import examine
from effprof.analysis.compare import compare
from effprof.analysis.kernel import to_analysis
from effprof.analysis.memory_model import MemoryAccount, MemoryPrediction, OutOfMemory, TensorGroup
from effprof.analysis.model import Analysis, Bar, Evidence, Finding, Gain
from effprof.analysis.timeline import build_timeline
from effprof.reports import html
from effprof.reports.html_elements import TABLE_ROWS, script_json, thinned
from effprof.runlog.reader import open_run
from effprof.runlog.schema import Event, Experts, Memory, Probe, Telemetry
from effprof.trace.account import KernelAccount
from effprof.trace.summary import Idle, RankKernels, Split, Step

ASSETS = Path(html.__file__).parent / "assets"
GIB = 2**30
VOID = {"meta", "link", "br", "img", "input"}
# Each would do something if it reached the page as anything but text.
ATTACKS = (
    "</script><script>window.hacked=1</script>",
    "<img src=x onerror=window.hacked=1>",
    "\"><svg onload='window.hacked=1'>",
    "' autofocus onfocus='window.hacked=1",
    "<!--<script>",
    "]]>{{7*7}}\u2028window.hacked=1//\u2029",
    "</title></style><b>bold",
    "javascript:window.hacked=1",
)


def with_timeline(path: Path) -> Analysis:
    run = open_run(str(path))
    examined = examine(run, now_s=1_760_100_000.0)
    peak = examined.analysis.efficiency.mfu.peak_flops_per_s
    examined.analysis.timeline = build_timeline(run, peak_flops_per_s=peak, steps=examined.steps)
    return examined.analysis


class Page(HTMLParser):
    """What a page holds: elements with their attributes, text of scripts, and the order of headings."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.headings: list[int] = []
        self.open: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def charts(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.scripts[0])["charts"]
        return found


@pytest.fixture
def full_analysis(moe_run: Any) -> Analysis:
    """An analysis in which every part of the report has something to show."""
    readings = {
        "power_w": {"unit": "W", "kind": "gauge"},
        "utilization_percent": {"unit": "percent", "kind": "gauge"},
        "energy_j": {"unit": "J", "kind": "counter"},
        "throttle_power_cap_s": {"unit": "s", "kind": "counter"},
    }
    samples = [
        Telemetry(
            monotonic_ns=5_020_000_000_000 + n * 10**9,
            values={
                "GPU-1.power_w": 400.0 + 10 * n,
                "GPU-2.power_w": 420.0 - 3 * n,
                "GPU-1.utilization_percent": 99 - n,
                "GPU-1.energy_j": 400 * n + n * n,
                "GPU-1.throttle_power_cap_s": max(0, n - 5),
            },
        )
        for n in range(12)
    ]
    moe_run.node([Probe(probe="nvidia", readings=readings)], samples, attempt=1)
    analysis = with_timeline(moe_run.path)
    evidence = [Evidence(metric="account.lines.startup", value=4.0, unit="s")]
    used = analysis.efficiency.mfu_wall.value
    assert used is not None
    analysis.waterfall = [
        Bar(name="startup", share=0.3, seconds=9.0, evidence=evidence),
        Bar(name="forward_backward", share=0.7 - used, seconds=10.0, evidence=evidence),
    ]
    gain = Gain(low=0.08, likely=0.11, high=0.13, bound=0.2)
    analysis.findings = [
        Finding(
            id="mem-recompute-selective",
            area="memory",
            title="Recompute only attention",
            evidence=evidence,
            lever="activation checkpointing",
            knobs={"lightning": "Trainer(strategy=FSDPStrategy(…))"},
            gain=gain,
            memory_effect_bytes=GIB,
            risk="low",
            sources=["https://arxiv.org/abs/2205.05198"],
        )
    ]
    return analysis


@pytest.fixture
def hostile_page(tmp_path: Path, hand_made: Any) -> str:
    """A report in which every string of the log is an attack."""
    bad = " ".join(ATTACKS)
    run = hand_made(tmp_path / "bad", "bad").record(
        framework=bad,
        framework_version=bad,
        model={"name": bad, bad: bad},
        config={"precision": bad, bad: {bad: [bad]}},
        hardware={"name": bad, "peak": {"flops_per_s": 1e9, "dtype": bad, "source": bad}},
        warnings=[{"code": bad, "message": bad}],
        parallel={"strategy": bad},
        software={bad: bad},
        command=[bad],
    )
    for rank in (0, 1):
        lines = [
            Experts(step=1, layers=[bad, "plain"], tokens_per_expert=[[1, 2], [3, 4]]),
            Event(name=bad, monotonic_ns=5_000_003_000_000, message=bad, data={"code": bad}),
            run.memory(process_rss_bytes=GIB),
        ]
        device = {"type": "cuda", "name": bad, "index": 0}
        steps = [run.step()] * 30
        run.rank(steps, rank=rank, world_size=2, host=bad, device=device, end="failed", reason=bad, lines=lines)
    samples = [
        Telemetry(monotonic_ns=5_000_000_000_000 + n * 10**9, values={f"{bad}.power_w": 300.0 + n, f"{bad}.{bad}": n})
        for n in range(4)
    ]
    run.node([Probe(probe=bad, readings={"power_w": {"unit": bad, "kind": bad}, bad: {"unit": bad}})], samples)
    analysis = with_timeline(run.path)
    analysis.waterfall = [Bar(name=bad, share=0.5, seconds=1.0, evidence=[Evidence(metric=bad, value=1.0, unit=bad)])]
    analysis.findings = [
        Finding(
            id=bad,
            area=bad,
            title=bad,
            evidence=[Evidence(metric=bad, value=None, unit=bad)],
            lever=bad,
            knobs={bad: bad},
            gain=Gain(low=0, likely=0.1, high=0.2, bound=0.3),
            memory_effect_bytes=None,
            risk=bad,
            sources=[bad],
        )
    ]
    return html.render(analysis)


def test_is_one_well_formed_page_that_needs_nothing_else(full_analysis: Analysis) -> None:
    source = html.render(full_analysis)
    page = Page(source)
    assert page.open == []
    assert not page.all("iframe")
    assert not page.all("object")
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "action", "data"):
                assert value in ("data:,",) or (value or "").startswith("#"), (tag, name, value)
    style = source[source.index("<style>") : source.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_the_policy_lets_only_its_own_scripts_run(full_analysis: Analysis) -> None:
    page = Page(html.render(full_analysis))
    [policy] = [m["content"] or "" for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert "unsafe" not in rules["script-src"]
    allowed = set(rules["script-src"].replace("'", "").split())
    code = page.scripts[1:]
    assert len(code) == 2
    assert {"sha256-" + base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in code} == allowed


def test_headings_landmarks_and_labels(full_analysis: Analysis) -> None:
    page = Page(html.render(full_analysis))
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(page.headings))
    for landmark in ("header", "nav", "main", "footer"):
        assert len(page.all(landmark)) == 1, landmark
    identifiers = [a["id"] for _, a in page.elements if "id" in a]
    assert len(identifiers) == len(set(identifiers))
    for attributes in page.all("a"):
        assert (attributes["href"] or "").removeprefix("#") in identifiers
    for attributes in page.all("section"):
        assert attributes["aria-labelledby"] in identifiers
    for attributes in page.all("select"):
        assert attributes["id"] in [label.get("for") for label in page.all("label")]


def test_every_chart_has_a_description_a_table_and_the_focus(full_analysis: Analysis) -> None:
    source = html.render(full_analysis)
    page = Page(source)
    boxes = [a for _, a in page.elements if "data-chart" in a]
    assert {a["data-chart"] for a in boxes} == set(page.charts)
    assert {"waterfall", "step_time", "mfu", "tokens", "phases", "memory", "experts", "ranks", "reading0"} <= set(
        page.charts
    )
    for attributes in boxes:
        assert attributes["role"] == "img"
        assert attributes["tabindex"] == "0"
        assert len(attributes["aria-label"] or "") > 40
    figures = re.findall(r"<figure>.*?</figure>", source, re.DOTALL)
    assert len(figures) == len(boxes)
    for figure in figures:
        assert "<details><summary>" in figure
        assert figure.count("<tr>") >= 2, figure


def test_hostile_strings_stay_text(hostile_page: str) -> None:
    page = Page(hostile_page)
    assert page.open == []
    assert len(page.scripts) == 3
    assert not page.all("img")
    assert not page.all("svg")
    assert all(not name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert "window.hacked=1" in hostile_page  # it is there to be read
    assert page.charts["waterfall"]["bars"]


def test_json_in_a_script_holds_nothing_that_ends_it() -> None:
    value = {text: [text, None, 1.5] for text in ATTACKS}
    written = script_json(value)
    assert json.loads(written) == value
    assert not set(written) & set("<>&\u2028\u2029")
    assert written.isascii()
    with pytest.raises(ValueError, match="Out of range"):
        script_json(float("nan"))


def test_figures_are_those_of_the_analysis(full_analysis: Analysis) -> None:
    source = html.render(full_analysis)
    share = full_analysis.efficiency.mfu
    assert share.value is not None
    assert f"{100 * share.value:.1f} %" in source
    assert "convention exact, of 1.0 GFLOP/s dense bf16 per device (datasheet)" in source
    assert "Recompute only attention" in source
    assert "+11 % (8 … 13)" in source
    assert "predicted, not verified yet" in source
    charts = Page(source).charts
    assert charts["experts"]["cells"] == [[2.0, 1.0, 0.5, 0.5], [1.0, 1.0, 1.0, 1.0]]
    assert charts["ranks"]["rows"] == ["rank 0", "rank 1"]
    bars = charts["waterfall"]["bars"]
    assert [bar["kind"] for bar in bars] == ["total", "loss", "loss", "result"]
    assert bars[1]["from"] == pytest.approx(0.7)
    assert bars[2]["from"] == pytest.approx(bars[3]["size"], abs=1e-5)
    kinds = {event["kind"] for event in charts["step_time"]["events"]}
    assert {"startup", "evaluation", "checkpoint", "throttling", "attempt"} <= kinds


def test_parts_without_data_are_left_out(cpu_analysis: Analysis) -> None:
    source = html.render(cpu_analysis)
    page = Page(source)
    assert page.charts == {}
    assert "not measured" in source
    assert "the model uses a custom kernel" in source
    sections = {a["id"] for a in page.all("section")}
    assert sections == {"summary", "account", "findings", "warnings", "details"}


def test_an_analysis_of_no_steps_renders(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "none").record().rank([], end="failed", reason="died early")
    page = Page(html.render(with_timeline(run.path)))
    assert "step_time" not in page.charts


def test_long_series_and_wide_models_keep_the_file_small(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "long").record()
    layers = {f"layers.{i}.mlp": [(i * 7 + e) % 50 + 1 for e in range(256)] for i in range(58)}
    for rank in range(4):
        run.rank([run.step(0.1)] * 20_000, rank=rank, world_size=4, lines=[run.experts(layers)])
    source = html.render(with_timeline(run.path))
    charts = Page(source).charts
    assert len(charts["step_time"]["series"]["at"]) <= 600
    assert len(charts["experts"]["cells"]) == 58
    assert len(source) < 2_500_000
    assert source.count("<tr>") < 1_500


def test_tables_are_thinned_evenly() -> None:
    assert thinned(5) == [0, 1, 2, 3, 4]
    picked = thinned(10_001)
    assert len(picked) == TABLE_ROWS
    assert picked[0] == 0
    assert picked[-1] == 10_000
    gaps = [b - a for a, b in pairwise(picked)]
    assert max(gaps) - min(gaps) <= 1


def test_comparisons_have_a_page_too(two_runs: Any) -> None:
    page = Page(html.render_comparison(compare(two_runs)))
    assert page.open == []
    assert {a["id"] for a in page.all("section")} >= {"runs", "differences", "figures"}


def test_the_library_is_the_recorded_one() -> None:
    content = (ASSETS / "echarts.min.js").read_bytes()
    recorded = re.search(r"\b[0-9a-f]{64}\b", (ASSETS / "README.md").read_text())
    assert recorded is not None
    assert hashlib.sha256(content).hexdigest() == recorded.group()
    assert len(content) < 1_100_000
    assert b"Apache-2.0" in content[:300]
    assert "Apache License" in (ASSETS / "LICENSE-echarts").read_text()
    assert b"eval(" not in content
    assert b"new Function" not in content


# ---- in a browser ----------------------------------------------------------------------------------------------------

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
DRIVER = shutil.which("chromedriver") or ""
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
needs_browser = pytest.mark.skipif(
    not (BROWSER and DRIVER),
    reason="chromium and chromedriver are not installed (apt-get install chromium chromium-driver)",
)


class Browser:
    """Headless Chromium with its network cut off."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def show(self, path: Path, *, width: int = 1200, theme: str = "light", calm: bool = False) -> None:
        media = [{"name": "prefers-color-scheme", "value": theme}]
        media.append({"name": "prefers-reduced-motion", "value": "reduce" if calm else "no-preference"})
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get(path.as_uri())

    def ask(self, script: str) -> Any:
        return self.driver.execute_script(script)

    def complaints(self) -> list[str]:
        return [line["message"] for line in self.driver.get_log("browser")]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    yield Browser(driver)
    driver.quit()


@pytest.fixture
def page_file(tmp_path: Path, full_analysis: Analysis) -> Path:
    path = tmp_path / "report.html"
    path.write_text(html.render(full_analysis), encoding="utf-8")
    return path


DRAWN = """
return [...document.querySelectorAll("[data-chart]")].map((box) => {
  const drawing = box.querySelector("svg, canvas");
  const size = drawing ? drawing.getBoundingClientRect() : { width: 0, height: 0 };
  const marks = drawing && drawing.tagName === "svg" ? drawing.querySelectorAll("path").length : 1;
  return [box.dataset.chart, size.width, size.height, marks];
});
"""


@needs_browser
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_charts_are_drawn_without_a_complaint(browser: Browser, page_file: Path, theme: str, width: int) -> None:
    browser.show(page_file, theme=theme, width=width)
    drawn = browser.ask(DRAWN)
    assert len(drawn) >= 9
    for name, wide, high, marks in drawn:
        assert wide > 200, name
        assert high > 120, name
        assert marks > 0, name
    assert browser.ask("return document.documentElement.dataset.drawn") == "yes"
    assert browser.complaints() == []
    assert browser.ask("return performance.getEntriesByType('resource').length") == 0
    assert browser.ask("const root = document.documentElement; return root.scrollWidth - root.clientWidth") == 0
    shown = browser.ask("return getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", shown)[:3])) / 3
    assert brightness < 60 if theme == "dark" else brightness > 220


@needs_browser
def test_heat_maps_are_painted(browser: Browser, page_file: Path) -> None:
    browser.show(page_file)
    for name in ("experts", "ranks"):
        colors = browser.ask(
            f"""
            const canvas = document.querySelector('[data-chart="{name}"] canvas');
            const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            const found = new Set();
            for (let i = 0; i < pixels.length; i += 4) found.add(pixels.slice(i, i + 4).join());
            return found.size;
            """
        )
        assert colors > 8, name


@needs_browser
def test_hostile_strings_do_nothing(browser: Browser, tmp_path: Path, hostile_page: str) -> None:
    path = tmp_path / "hostile <b>.html"
    path.write_text(hostile_page, encoding="utf-8")
    browser.show(path)
    assert browser.ask("return document.documentElement.dataset.drawn") == "yes"
    # tooltips are where a chart library would make HTML of strings: walk through all of them
    keys = """
    for (const box of document.querySelectorAll("[data-chart]")) {
      for (const key of ["End", "ArrowLeft", "Home", "ArrowRight"]) {
        box.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
      }
    }
    const count = (what) => document.querySelectorAll(what).length;
    return [window.hacked === undefined, count(".tip"), count("img, iframe")];
    """
    clean, tips, foreign = browser.ask(keys)
    assert clean
    assert tips > 4
    assert foreign == 0
    assert browser.ask("return document.querySelectorAll('script').length") == 3
    assert browser.complaints() == []


@needs_browser
def test_injected_scripts_and_requests_are_refused_by_the_page(browser: Browser, page_file: Path) -> None:
    browser.show(page_file)
    browser.ask(
        """
        const script = document.createElement("script");
        script.textContent = "window.injected = 1";
        document.body.append(script);
        """
    )
    assert browser.ask("return window.injected === undefined")
    refused = browser.driver.execute_async_script(
        "const done = arguments[0]; fetch('http://127.0.0.1:9/').then(() => done(false), () => done(true));"
    )
    assert refused
    said = " ".join(browser.complaints())
    assert "script-src" in said
    assert "default-src" in said or "connect-src" in said


@needs_browser
def test_the_keyboard_reads_values_aloud(browser: Browser, page_file: Path) -> None:
    browser.show(page_file)
    for name in browser.ask("return [...document.querySelectorAll('[data-chart]')].map((box) => box.dataset.chart)"):
        said = browser.ask(
            f"""
            const box = document.querySelector('[data-chart="{name}"]');
            box.focus();
            box.dispatchEvent(new KeyboardEvent("keydown", {{ key: "End", cancelable: true }}));
            const last = document.getElementById("live").textContent;
            box.dispatchEvent(new KeyboardEvent("keydown", {{ key: "Home", cancelable: true }}));
            return [document.activeElement === box, last, document.getElementById("live").textContent];
            """
        )
        assert said[0], name
        assert re.search(r"\d", said[1]), name
        # one sample of memory is a walk of one step
        assert said[1] != said[2] or name == "memory", name


@needs_browser
def test_the_theme_can_be_turned_and_the_rank_metric_chosen(browser: Browser, page_file: Path) -> None:
    browser.show(page_file, theme="light")
    before = browser.ask("return getComputedStyle(document.body).backgroundColor")
    assert browser.ask("return document.getElementById('theme').textContent") == "Dark theme"
    browser.ask("document.getElementById('theme').click()")
    assert browser.ask("return document.getElementById('theme').textContent") == "Light theme"
    assert browser.ask("return getComputedStyle(document.body).backgroundColor") != before
    browser.ask("document.getElementById('theme').click()")
    assert browser.ask("return getComputedStyle(document.body).backgroundColor") == before
    browser.ask(
        """
        const choice = document.getElementById("rank-metric");
        choice.value = "backward";
        choice.dispatchEvent(new Event("change"));
        const box = document.querySelector('[data-chart="ranks"]');
        box.dispatchEvent(new KeyboardEvent("keydown", { key: "Home", cancelable: true }));
        """
    )
    assert "backward" in browser.ask("return document.getElementById('live').textContent")
    assert all(high > 0 for _, _, high, _ in browser.ask(DRAWN))
    browser.ask("localStorage.clear()")
    assert browser.complaints() == []


CONTRAST = """
const light = (rgb) => {
  const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const [r, g, b] = rgb.map((c) => linear(c / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
const behind = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const color = numbers(getComputedStyle(at).backgroundColor);
    if (color.length < 4 || color[3] > 0) return color.slice(0, 3);
  }
  return [255, 255, 255];
};
for (const details of document.querySelectorAll("details")) details.open = true;
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const parent = walker.currentNode.parentElement;
  if (!walker.currentNode.textContent.trim() || parent.closest("script, noscript, .sr, .skip")) continue;
  const style = getComputedStyle(parent);
  const color = parent.closest("svg") ? style.fill : style.color;
  if (!color.startsWith("rgb")) continue;
  const [a, b] = [light(numbers(color).slice(0, 3)), light(behind(parent))].sort((x, y) => y - x);
  found.push([(a + 0.05) / (b + 0.05), parent.tagName, walker.currentNode.textContent.trim().slice(0, 40)]);
}
return found;
"""


@needs_browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(browser: Browser, page_file: Path, theme: str) -> None:
    browser.show(page_file, theme=theme, calm=True)
    found = browser.ask(CONTRAST)
    assert len(found) > 150
    assert [item for item in found if item[0] < 4.5] == []


@needs_browser
def test_works_without_javascript_for_the_numbers(browser: Browser, page_file: Path) -> None:
    browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.show(page_file)
        source = browser.driver.page_source
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert "every number is in the tables" in source
    assert source.count("<table") > 10


def test_an_analysis_read_back_from_json_renders_the_same(full_analysis: Analysis) -> None:
    copy = msgspec.json.decode(msgspec.json.encode(full_analysis), type=Analysis)
    assert html.render(copy) == html.render(full_analysis)


def test_memory_is_drawn_against_the_device(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "memory").record()
    lines = [
        Memory(
            monotonic_ns=5_000_000_000_000 + n * 10**8,
            step=n,
            allocated_bytes=(10 + n % 3) * GIB,
            reserved_bytes=20 * GIB,
            peak_allocated_bytes=18 * GIB,
            peak_reserved_bytes=20 * GIB,
            device_total_bytes=80 * GIB,
            device_free_bytes=50 * GIB,
        )
        for n in range(50)
    ]
    run.rank([run.step()] * 60, lines=lines)
    chart = Page(html.render(with_timeline(run.path))).charts["memory"]
    assert chart["limit"] == 80 * GIB
    named = {series["name"]: series for series in chart["series"]}
    assert max(named["device used"]["median"]) == pytest.approx(30 * GIB, rel=1e-4)
    assert max(named["allocated"]["median"]) == pytest.approx(12 * GIB, rel=1e-4)


def test_the_memory_account_its_prediction_and_a_failure_are_shown(full_analysis: Analysis) -> None:
    analysis = msgspec.json.decode(msgspec.json.encode(full_analysis), type=Analysis)
    analysis.memory.account = MemoryAccount(
        basis="tracker", peak_bytes=4 * GIB, lines={"parameters": GIB, "activations": 2 * GIB, "other": GIB}
    )
    analysis.memory.predictions = [
        MemoryPrediction(source="fake_copy", peak_bytes=3 * GIB, peak_at="backward", activations_bytes=None, ratio=0.97)
    ]
    analysis.memory.out_of_memory = OutOfMemory(
        rank=3,
        message="tried to allocate <b>2 GiB</b>",
        requested_bytes=2 * GIB,
        largest=[TensorGroup(shape="(8, 1024) float32", number=4, bytes=GIB)],
    )
    section = html.render(analysis).partition('id="memory"')[2].partition("</section>")[0]
    for said in ("parameters", "50.0 %", "one tracked step", "0.97 × measured", "rank 3", "(8, 1024) float32"):
        assert said in section, said
    assert "<b>2 GiB" not in section
    assert "--c-other" in section


def test_recorded_steps_and_the_causes_of_idle_time_are_shown() -> None:
    kernels = RankKernels(
        window_s=2.0,
        compute_s=1.0,
        communication_s=0.0,
        communication_exposed_s=0.0,
        memory_copy_s=0.0,
        memory_copy_exposed_s=0.0,
        idle_s=1.0,
        idle=Idle(host_bound_s=0.75, input_wait_s=0.25),
        kernels={},
    )
    step = Step(**{name: getattr(kernels, name) for name in Split.__struct_fields__}, step=17, host_s=2.0)
    kernels.steps = [step]
    analysis = analyze_traces_of(kernels)
    section = html.render(analysis).partition('id="kernels"')[2].partition("</section>")[0]
    assert "host bound 37.5 %" in section
    assert "input wait 12.5 %" in section
    assert "Recorded steps of rank 0 (1)" in section
    assert ">17<" in section


def analyze_traces_of(kernels: RankKernels) -> Analysis:
    """The analysis of a trace with one rank."""
    account = KernelAccount(ranks={0: kernels}, devices={}, world_size=1, started_us=0.0, ended_us=2e6)
    return to_analysis(account, "trace.json")


def test_a_trace_says_why_it_has_no_mfu() -> None:
    analysis = analyze_traces_of(
        RankKernels(
            window_s=1.0,
            compute_s=1.0,
            communication_s=0.0,
            communication_exposed_s=0.0,
            memory_copy_s=0.0,
            memory_copy_exposed_s=0.0,
            idle_s=0.0,
            idle=Idle(),
            kernels={},
        )
    )
    assert {"no_flops", "no_peak", "trace_only"} <= {warning.code for warning in analysis.warnings}
    assert "record the run with effprof for MFU" in html.render(analysis).partition('id="summary"')[2][:3000]
