"""The policy of the pages: it stops what is not theirs, and none of them needs what it stops."""

import contextlib
import socket
import threading

import pytest
from flask import Flask

from spectra_dashboard.connections import Server
from spectra_dashboard.guard import Guard, guard
from spectra_dashboard.headers import headers_for
from spectra_dashboard.registry import PAGES

pytestmark = pytest.mark.browser
WATCH = """window.violations = [];
addEventListener('securitypolicyviolation',
  (e) => violations.push(`${e.effectiveDirective} ${e.blockedURI}`));"""
STOPPED = {
    "script-src-elem inline": """const s = document.createElement('script');
      s.textContent = 'window.ran = 1'; document.body.append(s)""",
    "script-src-attr inline": "document.body.setAttribute('onclick', 'window.ran = 1')",
    "script-src eval": "setTimeout(() => Function('window.ran = 1')())",
    "connect-src https://evil.example/": "fetch('https://evil.example/').catch(() => {})",
    "img-src https://evil.example/x.png": "new Image().src = 'https://evil.example/x.png'",
    "frame-src https://evil.example": """const f = document.createElement('iframe');
      f.src = 'https://evil.example/'; document.body.append(f)""",
    "form-action https://evil.example/?": """const f = document.createElement('form');
      f.action = 'https://evil.example/'; document.body.append(f); f.submit()""",
}


@pytest.fixture(scope="module")
def strict(browser):
    """A page with its policy, and what it complained of."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(60_000)
    page.add_init_script(WATCH)
    said = []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("console", lambda m: said.append(m.text) if m.type in ("error", "warning") else None)
    yield page, said
    page.close()


@pytest.mark.parametrize("name", PAGES)
def test_no_page_needs_what_the_policy_stops(strict, address, name):
    page, said = strict
    run = "small/spectra.zarr" if PAGES[name].made_for == "run" else "scan.zarr"
    said.clear()
    page.goto(f"{address}/{name if name != 'runs' else ''}?run={run}&beside=uniform")
    if name == "runs":
        page.locator(".ag-row .sparks").first.wait_for()
        assert said == []
        return
    page.locator(".js-plotly-plot .plot-container .cartesianlayer path").first.wait_for(
        state="attached"
    )
    if (numbers := page.get_by_text("The numbers")).count():
        numbers.click()
        page.locator(".ag-row").first.wait_for()
    for kind in ("png", "svg"):
        with page.expect_download() as saved:
            page.locator(f"[data-save={kind}]").first.click(force=True)
        assert saved.value.suggested_filename.endswith(kind)
    assert page.evaluate("window.violations") == []
    assert said == []


@pytest.mark.parametrize("directive", STOPPED)
def test_the_policy_stops_what_is_no_part_of_a_page(strict, address, directive):
    page, _ = strict
    page.goto(f"{address}/")
    page.locator(".ag-row").first.wait_for()
    page.evaluate(STOPPED[directive])
    page.locator("body").dispatch_event("click")
    page.wait_for_timeout(100)
    assert directive in page.evaluate("window.violations")
    assert page.evaluate("window.ran") is None


@contextlib.contextmanager
def served(text, watch):
    """The port of a server of one page."""
    application = Flask("page")
    application.add_url_rule("/", view_func=lambda: text)
    guard(application, watch, headers_for())
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = Server(application, listening, watch, threads=2)
        threading.Thread(target=server.run, daemon=True).start()
        try:
            yield listening.getsockname()[1]
        finally:
            server.task_dispatcher.shutdown(timeout=2)
            server.close()


def test_the_address_with_the_token_opens_directly_and_by_a_link_of_another_site(browser):
    with served("the dashboard", Guard(token="a-token")) as port:
        address = f"http://127.0.0.1:{port}/"
        page = browser.new_page()
        page.goto(f"{address}?token=a-token")
        assert (page.url, page.inner_text("body")) == (address, "the dashboard")
        page.close()
        link = f"<a href='{address}?token=a-token'>open</a>"
        with served(link, Guard()) as other:
            page = browser.new_page()
            page.goto(f"http://localhost:{other}/")
            page.get_by_text("open").click()
            page.get_by_text("continue").click()
            page.get_by_text("the dashboard").wait_for()
            (cookie,) = page.context.cookies()
            assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
            page.close()
