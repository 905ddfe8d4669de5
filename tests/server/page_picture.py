"""Writes examples/guide/page.png, the picture of the page in the README: python tests/server/page_picture.py"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from conftest import ROOT, OpenPage, RunningServer
from playwright.sync_api import sync_playwright

sys.path.insert(0, str(ROOT))

from tests.browsers import CHROMIUM_FLAGS, chromium_path


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = RunningServer(Path(folder) / "log.txt", "--model", "bundled")
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=list(CHROMIUM_FLAGS))
        page = OpenPage(browser, server, device_scale_factor=1.5)
        page.tab.get_by_role("button", name="Not leather").click()
        page.tab.locator(".why").nth(2).click()  # the closest call
        page.tab.wait_for_selector(".steps:not([aria-busy]) .decision:not(:empty)")
        page.tab.click(".seen summary")
        page.tab.mouse.move(0, 0)
        page.tab.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)")
        table = page.tab.locator("#table").bounding_box()
        clip = {"x": 0, "y": 0, "width": 1280, "height": table["y"] + table["height"] + 24}
        page.tab.screenshot(path=ROOT / "examples/guide/page.png", full_page=True, clip=clip)
        browser.close()
        server.stop()


if __name__ == "__main__":
    main()
