"""A real browser for tests: the Chromium of the system, driven by Playwright, and a page that tells what went wrong."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator

import pytest

_PATIENCE_S = 180  # a machine with other work may need a minute for a page
_NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str:
    """Returns the path of the browser's program; skips the test where there is none."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)
    if not found:
        pytest.skip("no Chromium: install the package chromium, or name its program in CHROMIUM")
    return found


@contextlib.contextmanager
def running_browser() -> Iterator:
    """Yields a headless Chromium; skips the test where Playwright or Chromium is not installed."""
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: make test-browser")
    program = chromium()
    flags = [
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--disable-extensions",
        *(["--no-sandbox"] if os.geteuid() == 0 else []),
    ]
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=flags, timeout=1000 * _PATIENCE_S)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def opened(browser, address: str, width: int = 1280, scheme: str = "light") -> Iterator:
    """Yields a page at `address` whose list `complaints` holds messages, errors, dialogs and requests to elsewhere."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.set_default_timeout(1000 * _PATIENCE_S)
    page.complaints = []
    home = address.split("#")[0]
    page.on("console", lambda message: page.complaints.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: page.complaints.append(f"error: {error}"))
    page.on("request", lambda request: _note_request(page, request.url, home))
    page.on("dialog", lambda dialog: (page.complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    try:
        page.goto(address)
        yield page
    finally:
        page.close()


def _note_request(page, url: str, home: str) -> None:
    if not url.startswith((home, "data:", "blob:")):
        page.complaints.append(f"request: {url}")


def scroll_through(page) -> None:
    """Brings every part of the page into view once, and waits until every chart is drawn."""
    page.evaluate(
        """async () => {
          const pause = (ms) => new Promise((done) => setTimeout(done, ms));
          for (const plot of document.querySelectorAll(".plot")) {
            plot.scrollIntoView({ block: "center" });
            for (let i = 0; i < 400 && !plot.dataset.drawn; i += 1) await pause(10);
          }
        }"""
    )
    until(page, "[...document.querySelectorAll('.plot')].every((plot) => plot.dataset.drawn)")


def until(page, expression: str) -> None:
    """Waits until a JavaScript expression is true. Playwright's own wait evaluates text, which the page forbids."""
    deadline = time.monotonic() + _PATIENCE_S
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"never true: {expression}"
        page.wait_for_timeout(20)
