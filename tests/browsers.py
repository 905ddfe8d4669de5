"""Where a Chromium is, and how tests start it: that of the system, since playwright's own would be a download."""

from __future__ import annotations

import shutil

CHROMIUM_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def chromium_path() -> str | None:
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def assert_markup_is_dead(page) -> None:
    """Markup that is put into an open page runs nothing and asks for nothing: its Content-Security-Policy blocks it.

    page: `tab` (playwright's), and what its tests watch: `said` on the console and `asked` of the network.
    """
    blocked = page.tab.evaluate("""() => new Promise((done) => {
        const found = [];
        document.addEventListener('securitypolicyviolation', (event) => {
            found.push(event.effectiveDirective);
            if (found.length === 4) done(found.sort());
        });
        const script = document.createElement('script');
        script.textContent = 'window.hacked = 1';
        document.body.append(script);
        document.body.insertAdjacentHTML('beforeend', '<p style="color: red" onclick="window.hacked = 2">x</p>');
        document.body.lastElementChild.click();
        document.body.insertAdjacentHTML('beforeend', '<img src="http://127.0.0.1:1/x.png">');
    })""")
    assert blocked == ["img-src", "script-src-attr", "script-src-elem", "style-src-attr"]
    assert page.tab.evaluate("window.hacked") is None
    page.said.clear()  # the console says what was blocked
    page.asked = [url for url in page.asked if not url.endswith("x.png")]
