"""The policy of the pages: it stops what is not theirs, and none of them needs what it stops."""

import pytest

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
