"""The report: one file with every figure, drawn in a real browser."""

import base64
import json
import re
import shutil

import numpy as np
import pytest

import spectra
from spectra.allocation.path import write_path
from spectra.cli import main
from spectra.figures.dynamics import cosine_heatmap, spectrum_heatmap
from spectra.figures.training import loss_curve
from spectra.matrices import Matrix
from spectra.report.encoding import as_script, encode_cosines, encode_logarithms
from spectra.report.page import report_html, write_report
from spectra.report.payload import PAYLOAD_BYTES, default_matrices, payload
from spectra.store.layout import Contents, Layout
from spectra.store.writer import StoreWriter
from spectra_data.errors import InputError

DRAWN_STEP_BYTES = 20_000
"""What one more snapshot of measures adds to a page, at the most."""


def codes(encoded):
    return np.frombuffer(base64.b64decode(encoded["codes"]), "<u2").reshape(encoded["shape"])


def llama_matrices(layers, size=128):
    return tuple(
        Matrix(f"model.layers.{layer}.x.{role}_proj", layer, role, size, size)
        for layer in range(layers)
        for role in ("q", "k", "v", "o", "gate", "up", "down")
    )


def test_singular_values_survive_their_16_bits():
    values = np.logspace(0, -8, 50).reshape(2, 25)
    values[1, 3], values[0, 7] = 0, np.nan
    encoded = encode_logarithms(values)
    number = codes(encoded).astype(float)
    decoded = np.exp(encoded["low"] + (number - 2) / 65533 * encoded["span"])
    decoded[number == 1], decoded[number == 0] = 0, np.nan
    np.testing.assert_allclose(decoded, values, rtol=5e-4)


def test_cosines_survive_their_16_bits():
    values = np.array([[1.0, -1.0], [0.123, np.nan]])
    number = codes(encode_cosines(values)).astype(float)
    decoded = np.where(number == 0, np.nan, (number - 1) / 65534 * 2 - 1)
    np.testing.assert_allclose(decoded, values, atol=2e-5)


def test_the_default_is_the_papers_choice(tmp_path):
    StoreWriter.create(tmp_path / "a.zarr", Layout(llama_matrices(12), 1, 1), {})
    spectra_group = spectra.open(tmp_path / "a.zarr")["spectra"].to_dataset()
    assert default_matrices(spectra_group) == [
        "model.layers.0.x.q_proj",
        "model.layers.0.x.k_proj",
        "model.layers.6.x.down_proj",
        "model.layers.6.x.up_proj",
    ]


@pytest.mark.slow
def test_a_large_run_still_gives_a_file_under_ten_megabytes(tmp_path, monkeypatch):
    """As many matrices as a 7B model has, 60 snapshots: thinned, and said so."""
    monkeypatch.setattr("spectra.report.payload.MEASURED", 5)
    path, matrices = tmp_path / "a.zarr", llama_matrices(32, size=256)
    writer = StoreWriter.create(
        path, Layout(matrices, 60, None, Contents(sketch=16)), {"kind": "run"}
    )
    draw = np.random.default_rng(0)
    for step in range(60):
        values = -np.sort(-draw.random((3, len(matrices), 256), np.float32), axis=-1)
        names = ("spectra/weight", "spectra/gradient", "spectra/update")
        arrays = dict(zip(names, values, strict=True))
        arrays["sketches/gradient"] = draw.standard_normal((len(matrices), 16), np.float32)
        writer.write_snapshot(step * 100, arrays)
    data = payload(spectra.open(path))
    assert data["steps"][0] == 0
    assert data["steps"][-1] == 5900
    assert data["left_out"] == 60 - len(data["steps"]) > 0
    sizes = [len(base64.b64decode(e["codes"])) for kind in data["arrays"].values() for e in kind]
    assert sum(sizes) <= PAYLOAD_BYTES
    assert len(data["notes"]) == 2
    write_report(path, tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 10e6 - 20 * DRAWN_STEP_BYTES


@pytest.fixture(scope="module")
def reported(recorded_store, tmp_path_factory):
    """The page of `recorded_store`."""
    path = tmp_path_factory.mktemp("reported") / "report.html"
    write_report(recorded_store, path)
    return path


def test_nothing_in_a_runs_own_words_becomes_markup(recorded_store, reported):
    run = spectra.open(recorded_store)
    run.attrs["model"]["name"] = "<script>alert(1)</script>{{plotly}}"
    page = report_html(run, name="</script>")
    assert "<script>alert(1)" not in page
    assert "random &lt;tokens&gt;" in page
    assert page.count("</script>") == reported.read_text().count("</script>")


ODD = [
    "<!--<script>",
    "</script><script>window.ran = 1</script>",
    "<img src=x onerror='window.ran = 1'>",
    "a\u2028b\u2029c & <b>d</b> &lt;",
]


def test_json_in_a_script_has_nothing_that_a_parser_acts_on():
    for text in ODD:
        held = as_script({text: [text]})
        assert json.loads(held) == {text: [text]}
        assert not set("<>&\u2028\u2029") & set(held)


INJECTED = """() => { const s = document.createElement('script');
  s.textContent = 'window.ran = 1'; document.body.append(s) }"""


@pytest.mark.browser
def test_a_report_works_and_shows_names_that_look_like_markup(tmp_path, browser):
    matrices = tuple(Matrix(name, 0, name, 8, 8) for name in ODD)
    layout = Layout(matrices, 1, 1, Contents(spectra=("weight",), sketch=0))
    attrs = {"kind": "scan", "model": {"name": f"{''.join(ODD)}\ud800"}}
    writer = StoreWriter.create(tmp_path / "a.zarr", layout, attrs)
    values = np.linspace(2, 1, 8, dtype=np.float32)
    writer.write_snapshot(0, {"spectra/weight": np.stack([values] * len(ODD))})
    writer.close()
    write_report(tmp_path / "a.zarr", tmp_path / "a.html")
    page, errors = browser.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.goto((tmp_path / "a.html").as_uri())
    page.locator("#figure4 .annotation-text").first.wait_for()
    assert page.locator("#figure4 .annotation-text").all_text_contents() == ODD
    assert page.locator("#chooser td button").all_text_contents() == ODD
    page.locator("[data-kind=tail] .panel").last.scroll_into_view_if_needed()
    page.locator("[data-kind=tail] .gtitle").last.wait_for()
    titles = page.locator("[data-kind=tail] .gtitle").all_text_contents()
    assert [t.startswith(name) for t, name in zip(titles, ODD, strict=True)] == [True] * len(ODD)
    assert page.locator("img").count() == 0
    assert (page.evaluate("window.ran"), errors) == (None, [])
    page.evaluate(INJECTED)
    page.evaluate("fetch('https://evil.example/').catch(() => {})")
    assert page.evaluate("window.ran") is None
    refused = "\n".join(errors)
    assert "Executing inline script violates" in refused
    assert "https://evil.example/' violates" in refused or "https://evil.example/." in refused
    page.close()


def test_the_report_is_one_file_that_asks_for_nothing_else(reported):
    page = reported.read_text()
    head = page[: page.index("<script>")] + page[page.rindex("<header>") :]
    assert not re.findall(r"(?:src|href)=\"(?!data:)", head)


def test_a_store_without_snapshots_and_an_unwritable_place_say_so(tmp_path, store):
    StoreWriter.create(tmp_path / "a.zarr", Layout(llama_matrices(1), 1, 1), {})
    with pytest.raises(InputError, match="no snapshot yet"):
        write_report(tmp_path / "a.zarr", tmp_path / "report.html")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="it is a folder"):
        write_report(store, tmp_path)
    (store / "spectra/weight/c/1/0/0").write_bytes(b"junk")
    with pytest.raises(InputError, match="is damaged: "):
        write_report(store, tmp_path / "report.html")
    with pytest.raises(InputError, match=r"cannot be read|cannot write"):
        write_report(store, tmp_path / "file" / "report.html")


def test_figures_show_what_they_are_given():
    steps = np.array([0, 10])
    cosine = cosine_heatmap(np.eye(2), steps, title="m", standard_error=1 / 64)
    assert (cosine.data[0].zmin, cosine.data[0].zmax) == (-1, 1)
    assert "approximate ±0.016" in cosine.layout.title.subtitle.text
    shown = spectrum_heatmap(np.ones((2, 300)), steps, title="m").data[0]
    assert shown.z.shape == (2, 100)
    figure = loss_curve(np.arange(3), np.ones(3), np.array([np.nan, 2, np.nan]))
    assert [trace.name for trace in figure.data] == ["training", "validation"]
    assert figure.data[1].y.tolist() == [2]


DRAWN = """kind => [...document.querySelectorAll(`.panels[data-kind=${kind}] .js-plotly-plot`)]
    .map(panel => ({title: panel.layout.title.text.split(" ")[0], z: panel.data[0].z,
                    cells: panel.querySelectorAll(".heatmaplayer image").length}))"""


def drawn(page, kind, count):
    page.locator(f".panels[data-kind={kind}]").scroll_into_view_if_needed()
    page.wait_for_function(
        f"document.querySelectorAll('.panels[data-kind={kind}] .heatmaplayer image').length"
        f" === {count}"
    )
    return page.evaluate(DRAWN, kind)


@pytest.mark.browser
def test_the_page_draws_the_recorded_data_for_any_matrix(recorded_store, reported, browser):
    run = spectra.open(recorded_store)
    page = browser.new_page(viewport={"width": 1280, "height": 900}, bypass_csp=True)
    errors, requests = [], []
    page.on("pageerror", lambda error: errors.append(error))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(f"file://{reported}")
    cosines = drawn(page, "cosine", 4)
    assert [panel["title"].split(".", 2)[2] for panel in cosines] == [
        "0.self_attn.q_proj",
        "0.self_attn.k_proj",
        "1.mlp.down_proj",
        "1.mlp.up_proj",
    ]
    for panel in cosines:
        expected = spectra.cosine_similarity(run).sel(matrix=panel["title"])
        np.testing.assert_allclose(panel["z"], expected, atol=1e-4)
    for kind in ("gradient", "weight"):
        for panel in drawn(page, kind, 4):
            expected = run["spectra"][kind].sel(matrix=panel["title"]).values
            shown = np.array(panel["z"], float)[:, : expected.shape[1]]
            np.testing.assert_allclose(shown, expected[:, : shown.shape[1]], rtol=1e-3)
    page.get_by_title("model.layers.1.self_attn.v_proj").click()
    assert drawn(page, "cosine", 5)[-1]["title"] == "model.layers.1.self_attn.v_proj"
    page.locator("#norm").select_option("first")
    assert np.nanmax(np.array(drawn(page, "weight", 5)[0]["z"], float)) == 1
    page.get_by_label("Colours").select_option("log")
    assert np.nanmax(np.array(drawn(page, "weight", 5)[0]["z"], float)) == 0
    page.get_by_title("all of layer 0").click()
    assert page.locator("#count").inner_text() == "10 of 14 chosen"
    page.get_by_role("button", name="The paper's choice").click()
    assert page.locator("#count").inner_text() == "4 of 14 chosen"
    assert page.locator("#loss .scatterlayer .trace").count() == 2
    assert errors == []
    assert all(url.startswith(("file:", "data:", "blob:")) for url in requests)
    page.close()


@pytest.mark.browser
def test_the_page_draws_measures_tails_overlaps_and_the_claim(raw_store, tmp_path, browser):
    write_report(raw_store, tmp_path / "report.html")
    run = spectra.open(raw_store)
    page = browser.new_page(viewport={"width": 1280, "height": 900}, bypass_csp=True)
    errors = []
    page.on("pageerror", lambda error: errors.append(error))
    page.goto(f"file://{tmp_path / 'report.html'}")
    overlap = spectra.subspace_overlap(run).compute()
    for panel in drawn(page, "overlap", 4):
        expected = overlap.overlap.sel(matrix=panel["title"])
        np.testing.assert_allclose(panel["z"], expected, atol=1e-4)
    page.locator(".panels[data-kind=tail]").scroll_into_view_if_needed()
    tails = "document.querySelectorAll('[data-kind=tail] .scatterlayer').length"
    page.wait_for_function(f"{tails} === 4")
    table = spectra.metrics_table(run)
    kinds = page.locator("#kinds option").all_inner_texts()
    assert kinds == ["weight", "gradient", "update", "gradients over time"]
    page.locator("#kinds").select_option("gradient")
    page.locator("#measure").select_option("effective_rank")
    drawn_map = "document.getElementById('measure-map')._fullData[0].z"
    shown = page.evaluate(f"[...{drawn_map}].map(row => [...row])")
    expected = table.effective_rank.sel(kind="gradient").isel(step=-1).values.reshape(2, 7)
    np.testing.assert_allclose(shown, expected, rtol=1e-5)
    page.locator("#kinds").select_option("gradients over time")
    page.locator("#measure").select_option("saturation_step")
    assert page.locator("#measure-lines").is_hidden()
    assert page.locator("#figure4 .scatterlayer .trace").count() == 14
    assert page.locator("#claim-0 .point").count() == 14
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_function("document.documentElement.scrollWidth <= 390")
    heights = page.locator(".pair > div:not([hidden])").evaluate_all(
        "panels => panels.map(panel => panel.offsetHeight - panel._fullLayout.height)"
    )
    assert min(heights) >= 0  # none lies over the next
    assert errors == []
    page.close()


def test_a_store_of_weights_alone_is_reported_without_what_it_lacks(tmp_path):
    path, matrices = tmp_path / "a.zarr", llama_matrices(2, size=24)
    layout = Layout(matrices, 1, None, Contents(("weight",), sketch=0))
    writer = StoreWriter.create(path, layout, {"kind": "scan"})
    values = -np.sort(-np.random.default_rng(0).random((len(matrices), 24), np.float32))
    writer.write_snapshot(0, {"spectra/weight": values})
    data = payload(spectra.open(path))
    assert list(data["measures"]) == ["weight"]
    assert "lines" not in data["measures"]["weight"]["alpha"]
    assert (data["claim"], data["chance"]) == ([], None)
    assert len(data["tails"]) == len(matrices)
    assert "<main>" in report_html(spectra.open(path), name="a")


def test_a_store_of_sketches_alone_is_reported(tmp_path):
    path, matrices = tmp_path / "a.zarr", llama_matrices(2, size=24)
    layout = Layout(matrices, 2, None, Contents((), sketch=16))
    writer = StoreWriter.create(path, layout, {"kind": "run"})
    draw = np.random.default_rng(0)
    for step in range(2):
        sketches = draw.standard_normal((len(matrices), 16), np.float32)
        writer.write_snapshot(step, {"sketches/gradient": sketches})
    data = payload(spectra.open(path))
    assert list(data["measures"]) == ["gradients over time"]
    assert len(data["arrays"]["cosine"]) == len(matrices)
    with pytest.raises(InputError, match="nothing to measure"):
        spectra.metrics_table(spectra.open(path))


def test_raw_gradients_alone_give_exact_cosines(raw_store):
    run = spectra.open(raw_store)
    del run["sketches"]
    data = payload(run)
    exact = spectra.cosine_similarity(run, "exact").values[0]
    number = codes(data["arrays"]["cosine"][0]).astype(float)
    np.testing.assert_allclose((number - 1) / 65534 * 2 - 1, exact, atol=1e-4)
    assert "exact" in data["templates"]["cosine"]["layout"]["title"]["subtitle"]["text"]


def test_what_memory_does_not_allow_is_named_in_the_page(raw_store, monkeypatch):
    monkeypatch.setattr("spectra.report.payload.cosine_similarity", too_large)
    data = payload(spectra.open(raw_store))
    assert data["notes"] == ["Cosines of the gradients are left out: raise `memory`."]
    assert "cosine" not in data["arrays"]
    assert "effective_rank_decay" in data["measures"]["gradients over time"]


def too_large(run):
    raise InputError("raise `memory`")


@pytest.mark.browser
def test_the_page_fits_a_phone(reported, browser):
    page = browser.new_page(viewport={"width": 390, "height": 844}, bypass_csp=True)
    page.goto(f"file://{reported}")
    drawn(page, "cosine", 4)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()


def test_the_payload_is_plain_json(recorded_store):
    data = payload(spectra.open(recorded_store))
    assert json.loads(json.dumps(data, allow_nan=False))["left_out"] == 0


@pytest.mark.browser
def test_the_slider_moves_figures_four_and_six_along_the_path(shared, tmp_path, browser):
    run = spectra.scan(shared / "data" / "checkpoints" / "stories260K", tmp_path / "a.zarr")
    write_report(tmp_path / "a.zarr", tmp_path / "report.html")
    page = browser.new_page(viewport={"width": 1280, "height": 900}, bypass_csp=True)
    errors = []
    page.on("pageerror", lambda error: errors.append(error))
    page.goto(f"file://{tmp_path / 'report.html'}")
    slider = page.locator("#err")
    for err in (0.5, 0.25, 0.8):
        slider.evaluate("(s, v) => { s.value = v; s.dispatchEvent(new Event('input')); }",
                        round(err * 100))  # fmt: skip
        made = spectra.allocate(run, err=err)
        drawn = page.evaluate("document.getElementById('figure6').data.map(t => t.y)")
        expected = {role: [1 - m.rank / m.full_rank for m in made.modules if m.role == role]
                    for role in ("q", "k", "v", "o", "gate", "up", "down")}  # fmt: skip
        np.testing.assert_allclose(drawn, list(expected.values()))
        (cut,) = set(page.evaluate(
            "document.getElementById('figure4').layout.shapes.map(s => s.y0)"
        ))  # fmt: skip
        assert cut == made.threshold
        said = page.locator("#err-says").text_content()
        assert f"{len(made.lrc)} of 35 matrices are LRC" in said
        assert f"{100 * made.budget:.1f} %" in said
    for hidden in ("figure2-section", "figure3-section", "claim-section", "loss-section"):
        assert not page.locator(f"#{hidden}").is_visible()
    assert not errors


def test_a_stored_path_is_what_the_page_shows(store):
    write_path(store, spacing=0.1)
    run = spectra.open(store)
    shown = payload(run)["compression"]
    assert shown["target"] == run["path"].target.to_numpy().tolist()
    assert shown["ranks"] == run["path"]["rank"].to_numpy().tolist()


def test_stores_of_one_folder_have_reports_of_their_own(recorded_store, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "spectra.report.page.write_report", lambda store, out: out.write_bytes(b"a report")
    )
    for name in ("spectra.zarr", "scan.zarr"):
        shutil.copytree(recorded_store, tmp_path / name)
        assert main(["report", f"{tmp_path / name}/"]) == 0
    monkeypatch.chdir(shutil.copytree(recorded_store, tmp_path / "here.zarr"))
    assert main(["report", "."]) == 0
    made = {path.name for path in tmp_path.rglob("*.html")}
    assert made == {"report.html", "scan-report.html", "here-report.html"}
