"""The page with hostile text, with a keyboard alone, in the dark, on a phone, and as a screen reader finds it."""

from __future__ import annotations

import json

import pytest

from tests.browsers import assert_markup_is_dead

QUERY = "desk lamp in black"
HOSTILE = [
    "<script>window.hacked = 1</script> desk lamp",
    "<img src=x onerror='window.hacked = 2'> desk lamp",
    '"><svg onload="window.hacked = 3"> desk lamp',
    "{{constructor.constructor('window.hacked = 4')()}} desk lamp",
    "javascript:window.hacked=5 desk lamp",
]
MAKES_MARKUP = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(")


# --- Text of others stays text ----------------------------------------------------------------------------------------


def test_markup_in_a_query_and_in_titles_stays_text_everywhere_on_the_page(open_page, server):
    page = open_page(server)
    page.judge(HOSTILE[0], "\n".join(HOSTILE))
    page.tab.get_by_label("as given").check()
    assert page.texts(".title") == HOSTILE
    for button in page.tab.locator(".why").all():
        button.click()
    page.tab.locator(".reasons").nth(len(HOSTILE) - 1).wait_for()
    page.tab.wait_for_selector(".steps[aria-busy]", state="detached")
    assert page.tab.evaluate("window.hacked") is None
    assert page.tab.evaluate("document.querySelectorAll('#results img, #results svg, #results script').length") == 0
    assert HOSTILE[0] in page.tab.locator(".seen pre").first.text_content()


def test_a_script_that_got_into_the_page_would_not_run(open_page, server):
    """The last line of defence: even where markup were inserted, the Content-Security-Policy runs none of it."""
    page = open_page(server)
    assert_markup_is_dead(page)


def test_the_pages_own_files_hold_no_inline_script_or_style_and_insert_no_markup(server):
    html = server.ask("/")[1]
    assert "<style" not in html and " style=" not in html and " on" + "click=" not in html
    assert html.count("<script") == 1 and '<script type="module" src="page.js"></script>' in html
    for name in ("page.js", "server.js", "texts.js"):
        source = server.ask(f"/{name}")[1]
        assert not [word for word in MAKES_MARKUP if word in source], name
        assert "http:" not in source and "https:" not in source, name


# --- Who uses it ------------------------------------------------------------------------------------------------------


def test_everything_is_reached_and_used_with_the_keyboard_alone(open_page, server):
    page = open_page(server)
    keyboard = page.tab.keyboard

    def tab_to(selector: str) -> None:
        for _ in range(40):
            keyboard.press("Tab")
            if page.tab.evaluate("(selector) => document.activeElement.matches(selector)", selector):
                outlines = page.tab.evaluate("""() => {
                    const focused = document.activeElement, beside = focused.nextElementSibling ?? focused;
                    return [focused, beside].map((element) => getComputedStyle(element).outlineStyle);
                }""")
                assert "solid" in outlines, selector  # the focus is seen
                return
        raise AssertionError(f"{selector} is not reached")

    tab_to("#query")
    keyboard.type(QUERY)
    tab_to("#products")
    keyboard.type("title,price\n")
    keyboard.type("Galden rechargeable desk lamp fleece black for camping,$51\nred wood travel mug by Oddly,$7")
    tab_to("#judge")
    keyboard.press("Enter")
    page.tab.wait_for_selector(".verdict .tier")
    tab_to("#beta-0")
    before = page.tab.inner_text("output")
    keyboard.press("ArrowRight")
    assert float(page.tab.inner_text("output")) > float(before)
    keyboard.press("End")
    assert page.tab.inner_text("output") == "1.000"
    tab_to("[name=order]")
    keyboard.press("ArrowRight")
    assert [text.split()[0] for text in page.texts(".title")] == ["Galden", "red"]
    tab_to(".why")
    keyboard.press("Enter")
    page.tab.wait_for_selector(".steps:not([aria-busy]) .decision:not(:empty)")
    tab_to(".seen summary")
    keyboard.press("Enter")
    tab_to("[name=snippet]")
    keyboard.press("ArrowRight")
    assert "urllib.request" in page.tab.inner_text("#snippet")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_rule_of_accessibility_is_broken(scheme, open_page, server):
    """axe-core's rules for WCAG 2.0 to 2.2, levels A and AA, contrast included; and its best practices."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python").Axe()
    page = open_page(server, color_scheme=scheme)

    def broken() -> list:
        found = axe.run(page.tab).response["violations"]
        return [(rule["id"], [node["html"][:150] for node in rule["nodes"]]) for rule in found]

    assert broken() == []
    page.tab.get_by_role("button", name="Outside its world").click()
    page.tab.wait_for_selector(".verdict .tier")
    page.tab.locator(".why").first.click()
    page.tab.wait_for_selector(".steps:not([aria-busy]) .decision:not(:empty)")
    for details in page.tab.locator("details:not([hidden]) summary").all():
        details.click()
    assert broken() == []
    background = page.tab.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 200) == (scheme == "dark")
    page.tab.fill("#query", " ")
    page.tab.click("#judge")
    page.tab.wait_for_selector("#error:not([hidden])")
    assert broken() == []


def test_a_screen_reader_finds_names_headers_and_what_changed(open_page, server):
    page = open_page(server)
    page.judge(QUERY, "black linen desk lamp\nred wood travel mug")
    table = page.tab.get_by_role("table", name="Judged products")
    assert table.get_by_role("columnheader").all_inner_texts() == ["Product", "bundled-student"]
    assert table.get_by_role("rowheader").count() == 2
    assert page.tab.get_by_role("slider", name="Beta").get_attribute("aria-valuetext").endswith("served 0.556")
    assert page.tab.locator("#summary").get_attribute("aria-live") == "polite"
    assert page.tab.locator("#error").get_attribute("role") == "alert"
    for name in ("Query", "Products"):
        assert page.tab.get_by_role("textbox", name=name).count() == 1
    # A grade and a tier are said in words, so no colour has to be seen.
    assert [text.split()[1] for text in page.texts(".v-grade dd")] == ["Excellent", "Irrelevant"]
    assert set(page.texts(".verdict .tier")) <= {"Good", "Mid", "Bad"}


@pytest.mark.parametrize("width", [320, 768])
def test_on_a_phone_nothing_is_cut_off_at_the_side(width, open_page, server):
    page = open_page(server, viewport={"width": width, "height": 800})
    page.judge(QUERY, json.dumps({"title": "a" * 200 + " lamp", "price": "$3", "note": "b" * 200}))
    page.tab.click(".why")
    page.tab.wait_for_selector(".steps:not([aria-busy])")
    for summary in page.tab.locator("details:not([hidden]) summary").all():
        summary.click()
    assert page.tab.evaluate("document.documentElement.scrollWidth") <= width
    boxes = page.tab.locator("button:visible").all()
    assert all(box.bounding_box()["height"] >= 24 for box in boxes)  # WCAG 2.2: large enough to touch
