"""The HTML report in a real Chromium: filters, sorting, groups, hostile texts, narrow windows, accessibility."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from taosr1.evaluation.report.__main__ import main
from tests.browsers import assert_markup_is_dead
from tests.evaluation.report_inputs import DROPPED, GROUP, HOSTILE, scored_rows, write_lines, write_run


class OpenReport:
    """A tab with a report. `asked`: the addresses it requested; `said`: what its console said."""

    def __init__(self, browser, path, **settings) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **settings})
        self.tab = self.context.new_page()
        self.tab.set_default_timeout(10_000)
        self.asked, self.said, self.address = [], [], path.as_uri()
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.tab.on("console", lambda message: self.said.append(message.text))
        self.tab.on("pageerror", lambda error: self.said.append(str(error)))
        self.tab.goto(self.address)

    def titles(self) -> list[str]:
        """The products in the table of rows."""
        return self.tab.locator(".rows tbody > tr > td:nth-child(3) bdi").all_text_contents()

    def status(self, where: str = ".rows") -> str:
        return self.tab.inner_text(f"{where} [role=status]")


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """Two files of 120 pairs, the first five with hostile titles, and a run with three groups."""
    folder = tmp_path_factory.mktemp("report")
    files = []
    for name, wrong in (("one", 5), ("two", 2)):
        rows = scored_rows(120, wrong)
        for row, text in zip(rows, HOSTILE):
            row["title"] = text
        files.append(write_lines(folder / f"{name}.jsonl", rows))
    samples = [{"step": 1, **GROUP}, {"step": 1, **DROPPED}, {"step": 2, **GROUP}]
    run = write_run(folder / "grpo", [0.1, 0.2], samples, rewards="label=1", kl_beta=0.01, samples=8, steps=2)
    return main([run, *files, "--out", str(folder / "report.html"), "--bootstrap", "20"])


@pytest.fixture
def open_report(browser, page_file) -> Iterator:
    """Opens the report; at the end it must have requested nothing but itself, without a word in the console."""
    opened = []

    def start(**settings) -> OpenReport:
        opened.append(OpenReport(browser, page_file, **settings))
        return opened[-1]

    yield start
    for report in opened:
        assert report.asked == [report.address] and report.said == []
        report.context.close()


def test_rows_are_filtered_searched_sorted_and_turned_over(open_report):
    report = open_report()
    tab, rows = report.tab, report.tab.locator(".rows")
    assert report.status() == "1 to 50 of 120 rows"
    rows.get_by_role("button", name="Next").click()
    assert report.status() == "51 to 100 of 120 rows" and report.titles()[0] == "title 50"
    rows.get_by_label("Show", exact=True).select_option("ab")  # every fifth is wrong for A, every second for B
    right_wrong = [row for row in range(120) if row % 5 and row % 2 == 0]
    assert report.status() == f"1 to {len(right_wrong)} of {len(right_wrong)} rows"
    rows.get_by_label("Gold grade").select_option("3")
    expected = [f"title {row}" for row in right_wrong if row % 4 == 2]
    assert report.titles() == [HOSTILE[2], *expected[1:]]
    rows.get_by_label("Kind of query").select_option("=negation")
    assert report.status() == "no rows"
    for label, value in (("Show", "all"), ("Gold grade", ""), ("Kind of query", "")):
        rows.get_by_label(label, exact=True).select_option(value)
    rows.get_by_label("Search in all texts").fill("title 11 QUERY 59")  # every word, anywhere
    assert report.titles() == ["title 118", "title 119"]
    rows.get_by_role("button", name="Given A").click()  # 118 has gold 3 and 119 gold 4, both are right for A
    assert report.titles() == ["title 119", "title 118"]
    rows.get_by_role("button", name="Given A").click()
    assert report.titles() == ["title 118", "title 119"]
    assert tab.get_attribute(".rows th:has-text('Given A')", "aria-sort") == "ascending"


def test_a_row_opens_with_its_probabilities_and_both_judges(open_report):
    report = open_report()
    report.tab.locator(".rows").get_by_role("button", name="Why").first.click()
    detail = report.tab.inner_text(".rows .detail")
    assert "A: " in detail and "B: " in detail and "grade 2-Mismatch, tier Mid" in detail
    assert report.tab.locator(".bars").first.inner_text().split() == [
        "P(4)", "0.1000", "P(3)", "0.1000", "P(2)", "0.7000", "P(1)", "0.1000"]  # fmt: skip
    width = report.tab.locator(".bars i").nth(2).evaluate("bar => bar.style.width")
    assert width == "70%"
    report.tab.locator(".rows").get_by_role("button", name="Why").first.click()
    assert report.tab.locator(".rows .detail").count() == 0


def test_groups_are_gone_through_step_by_step(open_report):
    report = open_report()
    groups = report.tab.locator(".groups")
    assert report.status(".groups") == "1 to 2 of 2 groups"
    first, second = (groups.locator("article").nth(place) for place in (0, 1))
    cells = first.locator("tbody td").all_text_contents()
    assert cells == [HOSTILE[2], "2 ×", "4", "1.00", "0.577", HOSTILE[3], "1 ×", "✗ 2", "0.00", "-1.155"]
    assert "Gold 4; 2 of 3 replies are right. Kept: trained on." in first.inner_text()
    assert "Dropped: all right: every reply has the gold label" in second.inner_text()
    groups.get_by_role("button", name="Next step").click()
    assert report.status(".groups") == "1 to 1 of 1 groups"
    groups.get_by_label("Step", exact=True).select_option("any")
    groups.get_by_label("Outcome").select_option("=all right")
    assert groups.locator("article h3").all_inner_texts() == [f"mug | {HOSTILE[1]}"]


def test_hostile_texts_stay_text_and_nothing_is_requested(open_report):
    report = open_report()
    assert report.titles()[:5] == HOSTILE
    assert report.tab.locator(".groups article h3 bdi").first.text_content() == HOSTILE[0]
    assert report.tab.evaluate("window.hacked") is None
    assert report.tab.locator("img, svg[onload], .rows script, .groups script").count() == 0


def test_markup_that_got_in_would_neither_run_nor_ask_for_anything(open_report):
    """The last line of defence, the Content-Security-Policy of the file itself."""
    report = open_report()
    assert_markup_is_dead(report)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_rule_of_accessibility_is_broken(scheme, open_report):
    """axe-core's rules for WCAG 2.0 to 2.2, levels A and AA, contrast included; and its best practices."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python").Axe()
    report = open_report(color_scheme=scheme)
    report.tab.locator(".rows").get_by_role("button", name="Why").first.click()
    for details in report.tab.locator("section details summary").all():
        details.click()
    found = axe.run(report.tab).response["violations"]
    assert [(rule["id"], [node["html"][:150] for node in rule["nodes"]]) for rule in found] == []
    text = report.tab.evaluate("""() => [...document.querySelectorAll('.chart text')].map((one) =>
        [getComputedStyle(one).fill, getComputedStyle(one.closest('figure')).backgroundColor])""")
    assert text and min(contrast(*pair) for pair in text) >= 4.5  # axe does not look at the text of a picture
    lines = report.tab.evaluate("""() => [...document.querySelectorAll('.chart .line')].map((one) =>
        [getComputedStyle(one).stroke, getComputedStyle(one.closest('figure')).backgroundColor])""")
    assert min(contrast(*pair) for pair in lines) >= 3


def contrast(one: str, other: str) -> float:
    """WCAG's contrast of two colours, as "rgb(1, 2, 3)"."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in colour[4:-1].split(",")]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_is_cut_off_at_the_side_and_no_texts_of_a_chart_overlap(width, open_report):
    report = open_report(viewport={"width": width, "height": 800})
    report.tab.locator(".rows").get_by_role("button", name="Why").first.click()
    assert report.tab.evaluate("document.documentElement.scrollWidth") <= width
    overlaps = report.tab.evaluate("""() => [...document.querySelectorAll('.chart')].flatMap((chart) => {
        const texts = [...chart.querySelectorAll('text')];
        const boxes = texts.map((text) => [text.textContent, text.getBoundingClientRect()]);
        const frame = chart.getBoundingClientRect(), found = [];
        boxes.forEach(([one, a], place) => {
            if (a.left < frame.left - 1 || a.right > frame.right + 1) found.push(`${one} leaves its chart`);
            for (const [other, b] of boxes.slice(place + 1))
                if (a.left < b.right && b.left < a.right && a.top + 2 < b.bottom && b.top + 2 < a.bottom)
                    found.push(`${one} on ${other}`);
        });
        return found;
    })""")
    assert overlaps == []


def test_series_differ_in_more_than_colour(open_report):
    """Two score files in one chart: another dash and another mark each, so that they can be told apart in grey."""
    report = open_report()
    chart = report.tab.locator(".chart[aria-label='F1 of each grade']")
    dashes = {chart.locator(f".style-{style} .line").first.evaluate("one => getComputedStyle(one).strokeDasharray")
              for style in (0, 1)}  # fmt: skip
    shapes = {chart.locator(f".style-{style} .mark").first.get_attribute("d").count("h") for style in (0, 1)}
    assert len(dashes) == 2 and len(shapes) == 2
