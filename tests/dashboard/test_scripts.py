"""The scripts: all are served, their order does not matter, and what they say of ranks is so."""

import re
from importlib.resources import files

import numpy as np
import pytest

import spectra
from spectra_dashboard.access.library import Library
from spectra_dashboard.app import make_app
from spectra_dashboard.pages.runs import COLUMNS

KERNEL = files("spectra") / "assets" / "ranks.js"
SCRIPTS = sorted((files("spectra_dashboard") / "assets").glob("*.js"))


def test_every_script_is_served_and_so_is_what_the_report_shares(folder):
    client = make_app(Library(folder)).server.test_client()
    sources = re.findall(r'src="([^"]+)"', client.get("/").text)
    for script in (*SCRIPTS, KERNEL):
        (source,) = [s for s in sources if re.search(rf"/{script.stem}\.[^/]*js", s)]
        assert client.get(source).text == script.read_text()


@pytest.mark.browser
@pytest.mark.parametrize("order", [1, -1])
def test_the_scripts_have_every_function_that_python_names_in_any_order(folder, page, order):
    app = make_app(Library(folder))
    app.server.test_client().get("/")  # callbacks are put together at the first request
    named = {c["clientside_function"]["function_name"] for c in app._callback_list
             if c.get("clientside_function")}  # fmt: skip
    assert {"sync", "ranks", "grow"} <= named
    for script in (KERNEL, *SCRIPTS)[::order]:
        page.add_script_tag(content=script.read_text())
    assert set(page.evaluate("Object.keys(dash_clientside.spectra)")) == named
    cells = set(page.evaluate("Object.keys(dashAgGridComponentFunctions)"))
    assert cells == {c["cellRenderer"] for c in COLUMNS if "cellRenderer" in c}
    assert page.evaluate("typeof dashMantineFunctions.withSummary") == "function"
    assert page.evaluate("typeof dashAgGridFunctions.ago") == "function"


@pytest.fixture
def kernel(page):
    """Calls a function of ranks.js, which is loaded where there is no page."""
    page.evaluate("code => new Function('window', 'document', code)()", KERNEL.read_text())
    return lambda name, *given: page.evaluate(
        "([name, given]) => spectra.ranks[name](...given)", [name, list(given)]
    )


@pytest.mark.browser
@pytest.mark.parametrize("err", [0.0, 0.35, 0.7])
def test_the_kernel_says_of_ranks_what_allocate_does(kernel, folder, err):
    made = spectra.allocate(folder / "scan.zarr", err=err)
    rank, full = ([getattr(m, f) for m in made.modules] for f in ("rank", "full_rank"))
    factor = made.options["lrc_factor"]
    assert [m.name for m, r, f in zip(made.modules, rank, full, strict=True)
            if kernel("isLrc", r, f, factor)] == [m.name for m in made.lrc]  # fmt: skip
    traces = [list(range(0, 21, 7)), [20]]
    for drawn, of in zip(kernel("removed", rank, full, traces), traces, strict=True):
        np.testing.assert_allclose(drawn, [1 - rank[m] / full[m] for m in of])
    path = {name: [getattr(made, name)] for name in ("err", "threshold", "budget", "bytes")}
    path |= {"lrc": [len(made.lrc)], "full": full, "format": "BF16"}
    said = kernel("numbers", path, 0)
    assert said["err"] == f"{made.err:.4f}"
    assert said["budget"] == f"{100 * made.budget:.2f} %"
    assert said["threshold"] == f"{made.threshold:.5f}"
    assert said["lrc"] == f"{len(made.lrc)} / {len(made.nlrc)}"
    assert f"{len(made.lrc)} of 21 matrices are LRC" in kernel("sentence", path, 0)


@pytest.mark.browser
def test_a_cell_of_several_matrices_has_their_share_and_the_count_of_lrcs(kernel, folder):
    made = spectra.allocate(folder / "scan.zarr", err=0.6)
    roles = list(dict.fromkeys(m.role for m in made.modules))
    places = {"layers": ["all", "none"], "roles": roles, "row": [0] * len(made.modules),
              "column": [roles.index(m.role) for m in made.modules]}  # fmt: skip
    rank, full = ([getattr(m, f) for m in made.modules] for f in ("rank", "full_rank"))
    found = kernel("cells", rank, full, made.options["lrc_factor"], places)
    low = {m.name for m in made.lrc}
    for place, role in enumerate(roles):
        of = [m for m in made.modules if m.role == role]
        kept = sum(m.rank for m in of) / sum(m.full_rank for m in of)
        assert found["z"][0][place] == pytest.approx(kept)
        assert found["labels"][0][place] == f"● {sum(m.name in low for m in of)} of {len(of)}"
    assert found["z"][1] == [None] * len(roles)
    assert found["labels"][1] == [""] * len(roles)


@pytest.mark.browser
def test_the_kernel_takes_the_nearest_target_and_moves_the_threshold(kernel, folder):
    path = Library(folder).run("scan.zarr").path_of("welore", "err", "factors")
    targets = path["target"].to_numpy()
    for value in (0.0, 0.333, 0.5, 1.0):
        at = kernel("nearest", targets.tolist(), value)
        assert abs(targets[at] - value) == np.abs(targets - value).min()
    assert kernel("thresholdLines", 0.25, 1) == {
        "shapes[0].y0": 0.25, "shapes[0].y1": 0.25, "shapes[0].visible": True
    }  # fmt: skip
    assert kernel("thresholdLines", None, 1)["shapes[0].visible"] is False
    assert [kernel("size", count) for count in (123_456, 2_500_000, 13.5e9)] == [
        "123 kB", "2.50 MB", "13.5 GB"
    ]  # fmt: skip
