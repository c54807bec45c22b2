"""The page as it is used: in a real headless Chromium, of the example search and of one with odd text."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
from loop_helpers import ROOT, make_repository
from searches import make_rows, write_search, write_table

EXAMPLE = ROOT / "docs/example"
CHROMIUM = [path for name in ("chromium", "chromedriver") if (path := shutil.which(name))]
FLAGS = (
    "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update "
    "disable-sync window-size=1100,900"
)
in_browser = pytest.mark.skipif(len(CHROMIUM) < 2, reason="chromium and chromedriver are not installed")
FIVE = ("commit", "val_bpb", "memory_gb", "status", "description")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """One Chromium for all tests here, with its console and its network told."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM[0]
    for flag in [*FLAGS.split(), f"user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options, Service(CHROMIUM[1])) as driver:
        yield driver


@pytest.fixture(scope="module")
def long_search(tmp_path_factory) -> Path:
    """The page of 700 experiments, as `report` writes it."""
    folder = make_repository(tmp_path_factory.mktemp("long") / "repo")
    write_search(folder, 700)
    done = subprocess.run([sys.executable, "agent_loop.py", "report"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def open_page(browser, path: Path) -> None:
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(path.resolve().as_uri())


def check_quiet(browser, path: Path) -> None:
    """No error in the console, and no request of the page but for itself (a starting Chromium makes its own)."""
    assert [entry for entry in browser.get_log("browser") if "chrome://" not in entry["message"]] == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    page = path.resolve().as_uri()
    urls = {each["request"]["url"] for each in sent if each["documentURL"] == page}
    assert page in urls and urls <= {page, "data:,"}


def column(browser, number: int) -> list[str]:
    """The texts of a column of the large table, of the rows that are shown."""
    script = "return [...document.querySelectorAll('#rows tbody tr:not([hidden])')].map(r => r.cells[%d].textContent)"
    return browser.execute_script(script % number)


def type_in(browser, words: str) -> None:
    field = browser.find_element("id", "filter")
    field.clear()
    field.send_keys(words + " ")


# -----------------------------------------------------------------------------
# In the browser


@in_browser
@pytest.mark.slow
@pytest.mark.xdist_group("browser")
def test_sorting_filtering_folding(browser, long_search):
    open_page(browser, long_search)
    heads = browser.find_elements("css selector", "#rows th")
    assert column(browser, 0) == [str(n) for n in range(700)]
    heads[2].click()
    values = column(browser, 2)
    numbers = [float(value) for value in values if value]
    assert numbers == sorted(numbers) and "" not in values[: len(numbers)] and len(values) == 700
    heads[2].click()
    assert [float(value) for value in column(browser, 2) if value] == numbers[::-1]
    assert heads[2].get_attribute("aria-sort") == "descending"
    heads[10].click()
    assert column(browser, 0) != [str(n) for n in range(700)]

    type_in(browser, "MATRIX_LR optimizer")
    shown = column(browser, 10)
    assert 0 < len(shown) < 700 and all("MATRIX_LR" in text and "optimizer" in text for text in shown)
    assert browser.find_element("id", "count").text == f"{len(shown)} of 700"
    browser.find_element("css selector", "#status option:nth-child(2)").click()  # in alphabetical order: crash
    assert set(column(browser, 1)) == {"crash"}

    fold = browser.find_element("css selector", "tr.has + tr details")
    assert not fold.find_element("css selector", "pre").is_displayed()
    fold.find_element("css selector", "summary").click()
    lines = fold.find_elements("css selector", ".plus, .minus")
    assert lines and all(line.is_displayed() for line in lines)
    check_quiet(browser, long_search)


@in_browser
@pytest.mark.slow
@pytest.mark.xdist_group("browser")
def test_odd_text_is_text(browser, long_search):
    """Nothing that a model or a log wrote becomes an element, and all of it can be read."""
    open_page(browser, long_search)
    assert browser.title.startswith("autoresearch/t: ")
    tags = "return document.getElementsByTagName(arguments[0]).length"
    assert [browser.execute_script(tags, tag) for tag in ("script", "img", "i", "b")] == [1, 0, 0, 0]
    text = browser.execute_script("return document.body.textContent")
    for part in ("<script>document.title = 'taken over'</script>", "<img src=x onerror=alert(1)>", "🚀", "{{ 7 * 7 }}"):
        assert part in text
    browser.execute_script("location.hash = document.querySelector('svg a').getAttribute('xlink:href')")
    assert browser.find_element("css selector", "tr:target").get_attribute("id").startswith("e")
    check_quiet(browser, long_search)


@in_browser
@pytest.mark.slow
@pytest.mark.xdist_group("browser")
@pytest.mark.parametrize("width", [360, 1100])
def test_the_example_fits_phone_and_desk(browser, width):
    page = EXAMPLE / "report.html"
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    open_page(browser, page)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    folds = browser.find_elements("css selector", "tr.has + tr details")
    assert len(folds) == len(list(EXAMPLE.glob("[0-9]*.patch")))
    folds[0].find_element("css selector", "summary").click()
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    check_quiet(browser, page)


# -----------------------------------------------------------------------------
# Tables


def test_the_public_analysis_reads_our_table(tmp_path):
    """What its notebook does: the five columns by name, the verdicts counted, the best so far over what was kept."""
    rows = make_rows(60)
    table = pandas.read_csv(write_table(tmp_path / "results.tsv", rows), sep="\t")
    table["val_bpb"] = pandas.to_numeric(table["val_bpb"], errors="coerce")
    table["memory_gb"] = pandas.to_numeric(table["memory_gb"], errors="coerce")
    table["status"] = table["status"].str.strip().str.upper()
    counts = table["status"].value_counts()
    kept = table[table["status"] == "KEEP"]
    assert counts["KEEP"] == len([row for row in rows if row.status == "keep"]) and counts.sum() == 60
    assert list(table.columns[:5]) == list(FIVE) and table["memory_gb"].notna().all()
    assert kept["val_bpb"].cummin().iloc[-1] == kept["val_bpb"].iloc[-1] == pytest.approx(rows_best(rows), abs=1e-6)
    assert table["description"].notna().all()


def rows_best(rows) -> float:
    return min(row.val_bpb for row in rows if row.status == "keep")
