"""The pages, in a real browser: what is drawn, and what follows what."""

import contextlib
import json
import signal
import time
import urllib.parse

import numpy as np
import pytest
from playwright.sync_api import TimeoutError

import spectra
from spectra.cli import main
from spectra.figures.allocation import LRC_MARK
from spectra_dashboard.registry import PAGES
from spectra_dashboard.view import View
from tests.dashboard.served import (
    CALC,
    SMALL,
    Growing,
    drawn,
    go,
    panel,
    requests_from_now_on,
    serving,
    write_scan,
)
from tests.forked import Forked

pytestmark = pytest.mark.browser
RUN = "small/spectra.zarr"
Q = "model.layers.0.self_attn.q_proj"


def numbers(values):
    return np.array(values, dtype=float)


def text(page, identity):
    return page.locator(f"#{identity}").inner_text()


def has(page, part):
    """Wait until the address has a part."""
    page.wait_for_function("part => location.search.includes(part)", arg=part)


def choose(page, label, option):
    wanted = page.get_by_role("option", name=option, exact=True)
    for _ in range(5):  # an answer that arrives now draws the control anew, and so closes its list
        page.get_by_role("textbox", name=label, exact=True).click()
        with contextlib.suppress(TimeoutError):
            return wanted.click(timeout=4000)
    raise AssertionError(f"{label} offers no {option}")


def test_the_table_of_runs_says_what_there_is(page, address):
    page.goto(address)
    rows = page.locator(".ag-center-cols-container .ag-row")
    rows.nth(3).wait_for()
    said = rows.all_inner_texts()
    assert "unreadable" in said[0]
    assert "broken.zarr/zarr.json is not JSON" in said[0]
    assert "finished" in said[3]
    assert "7 / 7" in said[3]
    assert page.locator(".sparks polyline").count() == 1
    assert "maps/map.json" in page.locator("section").inner_text()
    page.get_by_role("link", name="small", exact=True).click()
    page.wait_for_url("**/dynamics?run=small%2Fspectra.zarr")
    drawn(page, panel("cosine", Q))


def test_two_chosen_runs_are_compared(page, address, folder):
    go(page, address)
    boxes = page.locator(".ag-selection-checkbox input")
    boxes.nth(1).check()
    boxes.nth(2).check()
    page.get_by_text("Compare the two chosen").click()
    page.wait_for_url("**/compare?run=other.zarr&other=scan.zarr")
    (trace,) = drawn(page, "compare-map")
    tables = [
        spectra.metrics_table(spectra.open(run))
        for run in (folder / "other.zarr", folder / "scan.zarr")
    ]
    first, second = (t.stable_rank.sel(kind="weight").isel(step=0).to_numpy() for t in tables)
    np.testing.assert_allclose(numbers(trace["z"]).ravel(), second - first, rtol=1e-4)
    layout = page.evaluate("document.querySelector('#compare-map .js-plotly-plot').data[0]")
    assert layout["zmin"] == -layout["zmax"]
    names = [t["name"] for t in drawn(page, "compare-spectra")]
    assert names == ["first: other, step 0", "second: scan, step 0"]


def test_two_snapshots_of_a_run_are_compared(page, address, folder):
    go(page, f"{address}/compare?run={RUN}&step=3&other_step=7&measure=frobenius_norm")
    (trace,) = drawn(page, "compare-map")
    table = spectra.metrics_table(spectra.open(folder / RUN)).frobenius_norm.sel(kind="weight")
    expected = (table.sel(step=7) - table.sel(step=3)).to_numpy().reshape(2, 7)
    np.testing.assert_allclose(numbers(trace["z"]), expected, atol=1e-5)
    page.get_by_text("The numbers").click()
    page.locator("#compare-numbers .ag-row").first.wait_for()


def test_dynamics_draws_what_was_recorded(page, address, folder):
    go(page, f"{address}/dynamics?run={RUN}")
    run = spectra.open(folder / RUN)
    cosine = drawn(page, panel("cosine", Q))[0]["z"]
    expected = spectra.cosine_similarity(run).sel(matrix=Q)
    np.testing.assert_allclose(numbers(cosine), expected, atol=1e-5)
    for kind in ("gradient", "overlap", "weight", "update"):
        page.locator(f".panel[data-kind={kind}]").first.scroll_into_view_if_needed()
        values = numbers(drawn(page, panel(kind, Q))[0]["z"])
        if kind == "overlap":
            expected = spectra.subspace_overlap(run).overlap.sel(matrix=Q).to_numpy()
        else:
            expected = run["spectra"][kind].sel(matrix=Q).to_numpy()
            expected = expected[:, : values.shape[1]]
        np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-7)
    assert [t["name"] for t in drawn(page, "loss")] == ["training", "validation"]
    assert "step 7 of 7 · 4 snapshots" in text(page, "status")
    assert "finished" in text(page, "status")
    page.get_by_text("exact", exact=True).click()
    has(page, "cosine=exact")
    page.wait_for_function(
        "id => document.getElementById(id).querySelector('.js-plotly-plot').layout"
        ".title.subtitle.text === 'cosine, exact'",
        arg=panel("cosine", Q),
    )


def test_only_figures_in_sight_are_drawn(page, address):
    go(page, f"{address}/dynamics?run={RUN}")
    drawn(page, panel("cosine", Q))
    page.wait_for_timeout(700)
    assert page.evaluate(CALC, panel("update", Q)) == []
    page.locator(".panel[data-kind=update]").first.scroll_into_view_if_needed()
    assert drawn(page, panel("update", Q))[0]["z"]


def test_the_scrubber_moves_the_spectra(page, address, folder):
    go(page, f"{address}/dynamics?run={RUN}&matrix={Q}")
    lines = panel("lines", Q)
    page.locator(".panel[data-kind=lines]").scroll_into_view_if_needed()
    drawn(page, lines)
    page.wait_for_timeout(500)
    page.get_by_label("Live").uncheck(force=True)
    asked = requests_from_now_on(page)
    page.get_by_role("slider").focus()
    page.keyboard.press("ArrowLeft")
    has(page, "step=6")
    assert text(page, "scrub-says") == "6"
    page.wait_for_function(
        "id => document.getElementById(id).querySelector('.js-plotly-plot').layout"
        ".title.subtitle.text === 'step 6'",
        arg=lines,
    )
    weight = next(t for t in drawn(page, lines) if t["name"] == "weight")
    expected = spectra.open(folder / RUN)["spectra"].weight.sel(step=6, matrix=Q).to_numpy()
    np.testing.assert_allclose(weight["y"], expected[np.isfinite(expected)], rtol=1e-6)
    assert text(page, "status").startswith("step 6 of 7; the last is 7")
    assert asked == []
    go(page, f"{address}/dynamics?run={RUN}&matrix={Q}&step=3")
    page.wait_for_function(
        "id => document.getElementById(id)?.querySelector('.js-plotly-plot')"
        "?.layout?.shapes?.[0]?.y0 === 3",
        arg=panel("cosine", Q),
    )


def test_a_cell_of_the_map_opens_its_matrix(page, address, folder):
    go(page, f"{address}/tails?run={RUN}&measure=effective_rank")
    (trace,) = drawn(page, "tails-map")
    table = spectra.metrics_table(spectra.open(folder / RUN)).effective_rank
    expected = table.sel(kind="weight", step=7).to_numpy().reshape(2, 7)
    np.testing.assert_allclose(numbers(trace["z"]), expected, rtol=1e-4)
    assert len(drawn(page, "tails-lines")) == 14
    tail = drawn(page, "tails-matrix")
    assert tail[0]["name"] == "eigenvalues"
    assert "bulk edge" in [t["name"] for t in tail]
    # the last cell of the first row, as a click on the drawing
    place = page.evaluate(
        """() => { const g = document.querySelector('#tails-map .js-plotly-plot');
          const { xaxis: x, yaxis: y } = g._fullLayout, box = g.getBoundingClientRect();
          return [box.x + x._offset + x.c2p(6), box.y + y._offset + y.c2p(0)]; }"""
    )
    page.mouse.click(*place)
    has(page, "matrix=model.layers.0.mlp.down_proj")
    page.wait_for_function(
        "document.querySelector('#tails-matrix .js-plotly-plot').layout.title.text"
        " === 'model.layers.0.mlp.down_proj'"
    )


def shown_ranks(page, side="a"):
    cells = drawn(page, f"map-{side}")[0]["text"]
    page.wait_for_function(
        f"document.querySelector('#map-{side} .js-plotly-plot').data[0].text[0][0] !== ''"
    )
    cells = drawn(page, f"map-{side}")[0]["text"]
    return [int(cell.removeprefix(LRC_MARK)) for row in cells for cell in row], cells


@pytest.mark.parametrize(
    "target", ["err", "budget", pytest.param("threshold", marks=pytest.mark.slow)]
)
def test_the_slider_agrees_with_allocate_and_asks_nobody(page, address, folder, target):
    go(page, f"{address}/ranks?run=scan.zarr&target={target}&value=0.6&beside=welore-grid")
    shown_ranks(page)
    page.get_by_label("Live").uncheck(force=True)
    page.wait_for_timeout(700)
    asked = requests_from_now_on(page)
    page.get_by_role("slider").focus()
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    has(page, "value=0.7")
    for side, method in (("a", "welore"), ("b", "welore-grid")):
        given = spectra.allocate(folder / "scan.zarr", method=method, **{target: 0.7})
        page.wait_for_function("([id, said]) => document.getElementById(id).textContent === said",
                               arg=[f"{side}-err", f"{given.err:.4f}"])  # fmt: skip
        page.wait_for_timeout(100)
        ranks, cells = shown_ranks(page, side)
        assert ranks == list(given.ranks.values())
        assert sum(LRC_MARK in cell for row in cells for cell in row) == len(given.lrc)
        assert text(page, f"{side}-budget") == f"{100 * given.budget:.2f} %"
        assert text(page, f"{side}-lrc") == f"{len(given.lrc)} / {len(given.nlrc)}"
        assert text(page, f"{side}-threshold") == f"{given.threshold:.5f}"
        error = np.mean([m.relative_error for m in given.modules])
        assert float(text(page, f"{side}-error")) == pytest.approx(error, abs=1e-4)
    page.wait_for_timeout(300)
    given = spectra.allocate(folder / "scan.zarr", **{target: 0.7})
    line = page.evaluate("document.querySelector('#figure4 .js-plotly-plot').layout.shapes[0].y0")
    assert line == pytest.approx(given.threshold)
    removed = [1 - m.rank / m.full_rank for m in given.modules if m.role == "q"]
    np.testing.assert_allclose(drawn(page, "figure6")[0]["y"], removed)
    assert asked == []


def test_the_table_says_what_a_matrix_is_stored_as(page, address):
    go(page, f"{address}/ranks?run=scan.zarr&value=0.6&storage=pivoted")
    shown_ranks(page)
    page.get_by_text("The numbers").click()
    cells = page.locator("#ranks-grid .ag-cell[col-id='stored as']")
    cells.filter(has_text="pivoted").first.wait_for()
    assert set(cells.all_text_contents()) <= {"pivoted", "whole"}


def test_downloads_and_the_command_line_make_the_same_file(
    page, address, folder, tmp_path, monkeypatch
):
    go(page, f"{address}/ranks?run=scan.zarr&value=0.6&method=uniform")
    shown_ranks(page)
    command, *others = text(page, "a-command").splitlines()
    assert command == "spectra allocate scan.zarr --method uniform --err 0.6 --out map.json"
    assert others == [
        "spectra export map.json --format csv --out map-csv.csv",
        "spectra export map.json --format peft --out adapter_config.json",
    ]
    program = [*command.split()[1:-1], str(tmp_path / "m.json")]
    monkeypatch.chdir(folder)
    assert main(program) == 0
    for kind, name in (
        ("json", "map.json"),
        ("csv", "map-csv.csv"),
        ("peft", "adapter_config.json"),
    ):
        with page.expect_download() as saved:
            page.locator(f"#a-get-{kind}").click()
        assert saved.value.suggested_filename == name
        content = saved.value.path().read_bytes()
        if kind == "json":
            assert content == (tmp_path / "m.json").read_bytes()
        else:
            rank_map = spectra.RankMap.load(tmp_path / "m.json")
            from spectra.exports.formats import FORMATS

            assert content.decode() == FORMATS[kind].make(rank_map)


def test_a_map_that_lies_there_is_laid_beside_a_method(page, address, folder):
    go(page, f"{address}/ranks?run=scan.zarr&beside=map:maps/map.json")
    ranks, _ = shown_ranks(page, "b")
    given = spectra.RankMap.load(folder / "maps" / "map.json")
    assert ranks == list(given.ranks.values())
    assert text(page, "b-err") == f"{given.err:.4f}"
    page.get_by_text("The numbers").click()
    page.locator("#ranks-numbers .ag-row").first.wait_for()


def test_the_path_is_drawn_with_what_was_measured(page, tmp_path):
    from spectra.store.evaluations import Evaluation, add_evaluation

    write_scan(tmp_path / "a.zarr", layers=2, size=16)
    for err, perplexity in ((0.2, 11.0), (0.4, 14.5)):
        add_evaluation(tmp_path / "a.zarr", Evaluation(err, 0.9, perplexity, "welore", data="text"))
    tuned = Growing(tmp_path / "tuned.zarr", rank_map={"model": {"name": "shaped-16"}})
    tuned.writer.write_train_rows([{"train_step": n, "loss": 9.0 - n} for n in (1, 2)])
    tuned.close()
    Growing(tmp_path / "odd.zarr", rank_map={"model": {"name": ["shaped-16"]}}).close()
    with serving(tmp_path) as address:
        page.goto(f"{address}/path?run=a.zarr")
        (losses,) = drawn(page, "path-finetuning")
        assert (losses["name"], losses["y"]) == ("tuned", [8, 7])
        budget, _, lrc = drawn(page, "path-curves")
        path = spectra.allocate(tmp_path / "a.zarr", err=0.5)
        place = int(np.abs(numbers(budget["x"]) - path.err).argmin())
        assert budget["y"][place] == pytest.approx(path.budget)
        assert lrc["y"][place] == pytest.approx(len(path.lrc) / 14)
        assert drawn(page, "path-memory")[0]["y"][0] > 0
        (measured,) = drawn(page, "path-measured")
        assert (measured["x"], measured["y"]) == ([0.2, 0.4], [11.0, 14.5])
        page.locator("#path-numbers .ag-row").first.wait_for()


def test_a_link_reproduces_the_view_and_back_and_forward_work(page, browser, address):
    page.goto(f"{address}/dynamics?run={RUN}")
    drawn(page, panel("cosine", Q))
    page.get_by_text("log", exact=True).click()
    has(page, "scale=log")
    page.get_by_text("over the largest", exact=True).click()
    has(page, "norm=first")
    shown = page.url
    query = urllib.parse.urlsplit(shown)
    assert View.from_address(query.path, query.query) == View(
        page="dynamics", run=RUN, scale="log", norm="first"
    )
    page.go_back()
    page.wait_for_function("!location.search.includes('norm')")
    checked = "[...document.querySelectorAll('.segments input:checked')].map(i => i.value).join()"
    page.wait_for_function(f"{checked} === 'sketch,log,raw'")
    page.go_forward()
    page.wait_for_function(f"{checked} === 'sketch,log,first'")
    other = browser.new_page(bypass_csp=True)
    other.goto(shown)
    drawn(other, panel("cosine", Q))
    other.wait_for_function(f"{checked} === 'sketch,log,first'")
    other.close()


def test_choosing_another_run_shows_it(page, address):
    go(page, f"{address}/ranks?run=other.zarr")
    shown_ranks(page)
    choose(page, "Run", "scan")
    page.wait_for_url("**/ranks?run=scan.zarr")
    page.wait_for_function("document.querySelector('#a-command').textContent.includes('scan.zarr')")
    choose(page, "Method", "uniform")
    has(page, "method=uniform")
    page.get_by_label("Live").uncheck(force=True)
    page.get_by_role("link", name="Path", exact=True).click()
    page.wait_for_url("**/path?run=scan.zarr")
    drawn(page, "path-curves")
    assert not page.get_by_label("Live").is_checked()  # a pause lasts from page to page


def test_the_theme_is_the_systems_until_it_is_chosen(browser, address):
    page = browser.new_page(color_scheme="dark", bypass_csp=True)
    page.goto(f"{address}/ranks?run=scan.zarr")
    drawn(page, "map-a")
    scheme = "document.documentElement.dataset.mantineColorScheme"
    ink = "getComputedStyle(document.querySelector('#map-a .gtitle')).fill"
    assert page.evaluate(scheme) == "dark"
    assert page.evaluate(ink) == "rgb(228, 231, 236)"
    page.get_by_role("button", name="Light or dark").click()
    page.wait_for_function(f"{scheme} === 'light'")
    assert page.evaluate(ink) == "rgb(31, 36, 48)"
    page.reload()
    drawn(page, "map-a")
    assert page.evaluate(scheme) == "light"
    page.context.close()


def test_figures_are_saved(page, address):
    go(page, f"{address}/ranks?run=scan.zarr")
    shown_ranks(page)
    for kind, start in (("svg", b"<svg"), ("png", b"\x89PNG")):
        with page.expect_download() as saved:
            page.locator(f".figure:has(#map-a) [data-save={kind}]").click(force=True)
        assert saved.value.suggested_filename == f"welore.{kind}"
        assert saved.value.path().read_bytes().startswith(start)


@pytest.mark.parametrize("name", list(PAGES))
def test_no_page_is_wider_than_a_phone(phone, address, name):
    run = "scan.zarr" if PAGES[name].made_for == "scan" else RUN
    go(phone, address + View(page=name, run=run).address())
    phone.locator("main h1").wait_for()
    phone.wait_for_timeout(1000)
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize(
    ("name", "run"),
    [*((name, "broken.zarr") for name in PAGES if PAGES[name].needs), ("dynamics", "nothing.zarr")],
)
def test_a_store_that_cannot_be_read_has_a_card(page, address, folder, name, run):
    go(page, f"{address}/{name}?run={run}")
    card = page.get_by_role("alert").first
    card.wait_for()
    assert run in card.inner_text()
    assert str(folder) not in page.content()
    choose(page, "Run", "scan")
    page.get_by_role("heading", level=1).wait_for()


def test_chunks_that_cannot_be_read_leave_the_page_alive(browser, tmp_path):
    write_scan(tmp_path / "a.zarr", layers=2, size=16)
    for chunk in (tmp_path / "a.zarr" / "spectra" / "weight" / "c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(b"no chunk")
    page = browser.new_page()
    with serving(tmp_path) as address:
        page.goto(f"{address}/ranks?run=a.zarr")
        page.get_by_role("alert").first.wait_for()
        assert "a.zarr cannot be read" in page.get_by_role("alert").first.inner_text()
        page.goto(f"{address}/tails?run=a.zarr")
        page.locator("#tails-map .annotation-text").first.wait_for()
    page.close()


def test_a_stores_words_are_text(page, tmp_path):
    evil = '<img src=x onerror="window.hurt=1">'
    write_scan(tmp_path / "a.zarr", layers=1, size=16)
    metadata = json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())
    metadata["attributes"]["model"]["name"] = evil
    metadata["attributes"]["config"] = {"data": evil}
    (tmp_path / "a.zarr" / "zarr.json").write_text(json.dumps(metadata))
    (tmp_path / "a.zarr").rename(tmp_path / "<img src=x onerror=window.hurt=1>.zarr")
    with serving(tmp_path) as address:
        page.goto(address)
        page.locator(".ag-center-cols-container .ag-row").first.wait_for()
        assert evil in page.locator(".ag-center-cols-container").inner_text()
        page.locator(".ag-row a").first.click()
        shown_ranks(page)
        assert page.evaluate("window.hurt") is None


def test_an_empty_folder_says_what_to_do(page, tmp_path):
    with serving(tmp_path) as address:
        page.goto(address)
        page.get_by_text("No stores here yet").wait_for()
        assert "spectra pretrain --out runs/first" in page.get_by_role("alert").inner_text()


def test_what_comes_and_goes_is_followed(page, tmp_path):
    name = panel("weight", SMALL[0].name)
    with serving(tmp_path) as address:
        page.goto(address)
        page.get_by_text("No stores here yet").wait_for()
        growing = Growing(tmp_path / "a.zarr", steps=9)
        page.get_by_role("link", name="a", exact=True).click()
        page.get_by_role("heading", name="No snapshot yet").wait_for()
        growing.snapshots(3)
        page.locator(".panel[data-kind=weight]").first.scroll_into_view_if_needed()
        assert len(drawn(page, name)[0]["z"]) == 3
        growing.snapshots(2)
        held = "([id, n]) => document.getElementById(id).querySelector('.js-plotly-plot').data[0]"
        page.wait_for_function(f"{held}.z.length === n", arg=[name, 5])
        growing.take_back(1)
        page.wait_for_function(f"{held}.z.length === n", arg=[name, 2])
        growing.snapshots(3)
        last = spectra.open(tmp_path / "a.zarr")["spectra"].weight[:, 0].to_numpy()
        page.wait_for_function(f"{held}.z[3]?.[0].toFixed(5) === n",
                               arg=[name, f"{last[3, 0]:.5f}"])  # fmt: skip
        np.testing.assert_allclose(numbers(drawn(page, name)[0]["z"]), last, rtol=1e-6)
        says = "document.getElementById('scrub-says').innerText === '4'"
        page.wait_for_function(says)
        growing.close()
        (tmp_path / "a.zarr").rename(tmp_path / ".gone")
        page.get_by_role("alert").wait_for()


def test_a_run_that_is_being_trained_grows_on_the_page(page, tmp_path):
    text_file = tmp_path / "text.txt"
    text_file.write_text("the cat sat on the mat and the dog sat on the log. " * 4000)
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "llama", "hidden_size": 32, "intermediate_size": 48,
                    "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 300,
                    "max_position_embeddings": 64})
    )  # fmt: skip
    command = [
        "pretrain", "--model", str(tmp_path / "config.json"), "--data", str(text_file),
        "--steps", "60", "--seq-len", "32", "--batch-size", "4", "--record-every", "5",
        "--probe-size", "2", "--sketch", "64", "--eval-every", "30", "--eval-tokens", "256",
        "--device", "cpu", "--out", str(tmp_path / "runs" / "live"),
    ]  # fmt: skip
    (tmp_path / "runs").mkdir()
    with serving(tmp_path / "runs") as address:
        page.goto(address)
        page.get_by_text("No stores here yet").wait_for()
        training = Forked(main, command)
        try:
            store = tmp_path / "runs" / "live" / "spectra.zarr"
            deadline = time.monotonic() + 120
            while not (store.exists() and spectra.open(store)["spectra"].sizes["step"]):
                assert training.poll() is None, training.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            training.send_signal(signal.SIGSTOP)  # until the page shows what there is
            _watch(page, address, training, store)
        finally:
            training.kill()
            training.wait()


def _watch(page, address, training, store):
    sent = []

    def finished(request):
        if (
            '"type":"rows"' in (request.post_data or "")
            and "news.data" not in request.post_data[:200]
        ):
            answer = request.response()
            if answer is not None and answer.status == 200:
                sent.append(int(answer.headers["content-length"]))

    page.on("requestfinished", finished)
    page.goto(f"{address}/dynamics?run=live/spectra.zarr")
    growing = panel("cosine", Q)
    before = len(drawn(page, growing)[0]["z"])
    training.send_signal(signal.SIGCONT)
    page.wait_for_function("document.querySelector('#status').textContent.includes('finished')",
                           timeout=120_000)  # fmt: skip
    training.wait()
    run = spectra.open(store)
    page.wait_for_function(
        "([id, rows]) => document.getElementById(id).querySelector('.js-plotly-plot')"
        ".data[0].z.length === rows",
        arg=[growing, run["spectra"].sizes["step"]],
    )
    shown = drawn(page, growing)[0]
    assert before < len(shown["z"]) == 13
    np.testing.assert_allclose(
        numbers(shown["z"]), spectra.cosine_similarity(run).sel(matrix=Q), atol=1e-5
    )
    assert shown["y"] == run["spectra"].step.to_numpy().tolist()
    page.wait_for_function(
        "document.querySelector('#loss .js-plotly-plot')._fullData[0].x.length === 60"
    )
    # a tick brings the rows that are new: of 13 steps each at most once, of eight panels
    row = 8 * (32 * 4 * 4 / 3 + 600)
    assert sum(sent) < 13 * row
