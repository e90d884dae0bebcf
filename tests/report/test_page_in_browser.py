"""The page in headless Chromium: it loads without a complaint, sorts, filters, shows predictions, and looks right.

Run by ``make test-html``, which installs what it needs. Pictures of the page in light, dark and print go to
``build/page/``, for somebody to look at.
"""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from sample_sweep import METHODS, SEARCHED, write_sample

from bench import report

pytestmark = pytest.mark.browser
pytest.importorskip("selenium", reason="needs selenium; make test-html installs it")

PICTURES = Path(__file__).resolve().parents[2] / "build" / "page"
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1360,1000"),
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_sample(tmp_path_factory.mktemp("results") / "sample")
    return report.write(root, "tuneoff run sample.yaml") / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.binary_location = shutil.which("chromium") or "chromium"
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    driver.execute_cdp_cmd("Network.enable", {})
    driver.execute_cdp_cmd("Network.emulateNetworkConditions", OFFLINE)
    yield driver
    driver.quit()


def row_of(method: str) -> str:
    """The name of a method's best row, which has its learning rate where the sample has tried others."""
    return f"{method} (learning_rate={METHODS[method][1]:g})" if method in SEARCHED else method


OFFLINE = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}


@pytest.fixture
def opened(browser: Any, page: Path) -> Any:
    """The browser with the page freshly loaded; at the end, nothing may stand in its console."""
    browser.get_log("browser")
    browser.get(page.as_uri())
    yield browser
    assert browser.get_log("browser") == []


def texts(browser: Any, selector: str) -> list[str]:
    """What stands in the elements that are shown."""
    script = (
        "return [...document.querySelectorAll(arguments[0])]"
        ".filter(e => !e.closest('[hidden]')).map(e => e.textContent.trim())"
    )
    found: list[str] = browser.execute_script(script, selector)
    return found


def column_of(browser: Any, heading: str) -> int:
    """Which column, from 1, has a heading that begins so."""
    script = (
        "return 1 + [...document.querySelectorAll('#table-1 thead th')]"
        ".findIndex(e => e.textContent.startsWith(arguments[0]))"
    )
    return int(browser.execute_script(script, heading))


def choose(browser: Any, selector: str, value: str) -> None:
    script = (
        "const e = document.querySelector(arguments[0]); e.value = arguments[1]; e.dispatchEvent(new Event('input'))"
    )
    browser.execute_script(script, selector, value)


def click(browser: Any, selector: str) -> None:
    browser.execute_script("document.querySelector(arguments[0]).click()", selector)


def unfold(browser: Any, selector: str) -> None:
    """Open a part of the page, and wait until what is in it has been made."""
    browser.execute_async_script(
        "const part = document.querySelector(arguments[0]); part.open = true; requestAnimationFrame(() => "
        "setTimeout(arguments[1], 0))",
        selector,
    )


def write_into(browser: Any, selector: str, text: str) -> None:
    from selenium.webdriver.common.by import By

    field = browser.find_element(By.CSS_SELECTOR, selector)
    field.clear()
    field.send_keys(text)


def test_it_loads_quickly_and_shows_everything(opened: Any) -> None:
    headings = texts(opened, "main h2")
    assert headings == [
        "Results",
        "Caveats",
        "Plots",
        "Predictions side by side",
        "Failed trials",
        "All trials",
        "Made with",
    ]
    milliseconds = opened.execute_script("return performance.getEntriesByType('navigation')[0].duration")
    assert milliseconds < 3000
    assert opened.execute_script("return document.querySelectorAll('figure svg').length") == 7
    assert opened.execute_script("return performance.getEntriesByType('resource').length") == 0, "it loads nothing"


def test_the_table_sorts_by_numbers_and_back(opened: Any) -> None:
    def first_methods() -> list[str]:
        return texts(opened, "#table-1 tbody th .method")

    assert first_methods()[0] == "full" and first_methods()[-1] == "none"
    column = column_of(opened, "trained ")
    click(opened, f"#table-1 thead th:nth-child({column}) button")
    assert first_methods()[0] == "full"
    click(opened, f"#table-1 thead th:nth-child({column}) button")
    assert first_methods()[:2] == ["none", "prompt_tuning"]
    click(opened, "#table-1 thead th:first-child button")
    assert first_methods() == sorted(first_methods())
    assert opened.execute_script("return document.querySelectorAll('#table-1 thead [aria-sort]').length") == 1


def test_absent_values_come_last_in_both_directions(opened: Any) -> None:
    column = column_of(opened, "peak")
    for _ in range(2):
        click(opened, f"#table-1 thead th:nth-child({column}) button")
        assert texts(opened, "#table-1 tbody th .method")[-1] == "none"


def test_rows_are_filtered(opened: Any) -> None:
    write_into(opened, ".row-filter", "prefix")
    assert set(texts(opened, "#table-1 tbody th .method")) == {"prefix_tuning"}
    assert texts(opened, "[data-count]") == ["5 of 20 configurations"]


def test_all_trials_are_listed_sorted_and_filtered(opened: Any) -> None:
    unfold(opened, "#trial-fold")
    assert texts(opened, "#trial-count") == ["58 of 58 trials"]
    write_into(opened, "#trial-text", "diverged")
    assert len(texts(opened, "#trial-table tbody tr")) == 1
    write_into(opened, "#trial-text", "lora-s")
    click(opened, "#trial-table thead th:nth-child(5) button")
    scores = [float(text) for text in texts(opened, "#trial-table tbody td:nth-child(5)")]
    assert len(scores) == 5 and scores == sorted(scores, reverse=True)


def test_predictions_are_searched_and_methods_hidden(opened: Any) -> None:
    assert texts(opened, ".prediction") == [], "nothing is made before it is looked at"
    unfold(opened, "#prediction-fold")
    assert len(texts(opened, ".prediction")) == 20
    click(opened, "#prediction-more")
    assert len(texts(opened, ".prediction")) == 60
    write_into(opened, "#prediction-text", "the vaults")
    found = texts(opened, ".prediction .source")
    assert 0 < len(found) < 60
    assert texts(opened, ".prediction mark")[0] == "The Vaults"
    shown = texts(opened, ".prediction:first-child dt")
    assert {row_of(method) for method in METHODS} <= set(shown)
    click(opened, "#prediction-methods label:first-of-type input")
    assert row_of("full") not in texts(opened, ".prediction:first-child dt")


def test_predictions_by_tag_and_by_disagreement(opened: Any) -> None:
    unfold(opened, "#prediction-fold")
    choose(opened, "#prediction-tag", "unseen")
    choose(opened, "#prediction-order", "differ")
    assert texts(opened, "#prediction-count") == ["20 of 60 sources"]
    distinct = opened.execute_script(
        "return [...document.querySelectorAll('.prediction')].map("
        "p => new Set([...p.querySelectorAll('dd:not(.score):not(.reference)')].map(e => e.textContent)).size)"
    )
    assert distinct[0] == max(distinct)


def test_nothing_is_wider_than_the_window(opened: Any) -> None:
    for width in (1360, 700, 390):
        opened.set_window_size(width, 1000)
        widest = opened.execute_script(
            "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert widest <= 0, f"at {width} pixels the page scrolls sideways by {widest}"
    opened.set_window_size(1360, 1000)


def test_texts_in_plots_do_not_lie_on_each_other(opened: Any) -> None:
    """What a browser's fonts make of them, which are not those that the figures were laid out with."""
    overlapping = opened.execute_script(
        """
        const found = [];
        for (const svg of document.querySelectorAll("figure svg")) {
          const boxes = [...svg.querySelectorAll("text")].map((e) => [e.textContent, e.getBoundingClientRect()]);
          boxes.forEach(([one, a], i) => boxes.slice(i + 1).forEach(([other, b]) => {
            const width = Math.min(a.right, b.right) - Math.max(a.left, b.left);
            const height = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
            if (width > 2 && height > 3) found.push(`${one} / ${other}`);
          }));
        }
        return found;
        """
    )
    assert overlapping == []


def test_the_theme_switches_and_text_stays_readable(opened: Any) -> None:
    contrast = """
        const luminance = (text) => {
          const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map((v) => v / 255)
            .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
          return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const paper = luminance(getComputedStyle(document.body).backgroundColor);
        return [...document.querySelectorAll("h1, .lead, .note, td, th button, figcaption")].map((e) => {
          const ink = luminance(getComputedStyle(e).color);
          return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
        }).reduce((a, b) => Math.min(a, b));
    """
    backgrounds = set()
    for _ in range(2):
        backgrounds.add(opened.execute_script("return getComputedStyle(document.body).backgroundColor"))
        assert opened.execute_script(contrast) > 4.5, "WCAG AA asks for 4.5 to 1"
        click(opened, "#theme")
    assert len(backgrounds) == 2


def test_pictures_for_people(opened: Any) -> None:
    """Light, dark and print, to be looked at; here only that there is something on them."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "screen", "features": features})
        size = opened.execute_script("return [innerWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1}
        shot = opened.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
        (PICTURES / f"{scheme}.png").write_bytes(base64.b64decode(shot["data"]))
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    printed = opened.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True, "printBackground": True})
    (PICTURES / "print.pdf").write_bytes(base64.b64decode(printed["data"]))
    for path in PICTURES.iterdir():
        assert path.stat().st_size > 50_000, path


def test_the_tables_are_there_without_javascript(browser: Any, page: Path) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(page.as_uri())
        nodes = browser.execute_cdp_cmd("DOM.getDocument", {"depth": 0})
        found = browser.execute_cdp_cmd("DOM.getOuterHTML", {"nodeId": nodes["root"]["nodeId"]})["outerHTML"]
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert '<span class="method">prompt_tuning</span>' in found
    assert "This table needs JavaScript" in found and 'class="prediction"' not in found


AXE_OPTIONS = {"resultTypes": ["violations"]}


@pytest.mark.parametrize("width", [1400, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("unfolded", [False, True], ids=["folded", "unfolded"])
def test_axe_finds_nothing(opened: Any, width: int, scheme: str, unfolded: bool) -> None:
    """Checks of axe-core, best practices among them, on the page as it comes and with every part of it open."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "screen", "features": features})
    opened.set_window_size(width, 1000)
    if unfolded:
        for part in ("#trial-fold", "#prediction-fold"):
            unfold(opened, part)
        opened.execute_script("for (const part of document.querySelectorAll('details')) part.open = true")
    opened.execute_script((resources.files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8"))
    found = opened.execute_async_script(
        "const [options, done] = arguments; axe.run(document, options).then((result) => done(result.violations))",
        AXE_OPTIONS,
    )
    opened.set_window_size(1360, 1000)
    assert [(one["id"], one["nodes"][0]["html"]) for one in found] == []


def test_the_first_screen_is_the_answer(opened: Any) -> None:
    """Who leads and at what cost, and the best rows with quality, parameters, memory and throughput."""
    for width, height in ((1400, 900), (390, 1000)):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        seen = opened.execute_script(
            "return [...document.querySelectorAll('.verdict, .told, #table-1 tbody tr:first-child > *')]"
            ".filter((e) => { const b = e.getBoundingClientRect(); return b.width && b.bottom < innerHeight "
            "&& b.right <= innerWidth; }).map((e) => e.textContent.trim())"
        )
        height_of_page = opened.execute_script("return document.documentElement.scrollHeight")
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        assert seen[0].startswith("BLEU: the best mean is that of full")
        assert any(text.startswith(f"At what cost: {row_of('full')} 134.5M parameters trained") for text in seen)
        for value in ("full learning_rate=0.0001", "66.6 ± 0.5", "134.5M", "4,411 ± 0", "2,426 ± 14"):
            assert value in [" ".join(text.split()) for text in seen], (width, value)
        assert height_of_page < 6000


def test_print_is_a_few_pages(opened: Any) -> None:
    printed = opened.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True, "printBackground": True})
    assert base64.b64decode(printed["data"]).count(b"/Type /Page\n") <= 5
