"""Components that pages share: selects, sliders, tables, titles."""

from collections.abc import Mapping, Sequence
from html import escape
from shlex import quote
from typing import Any

import dash_ag_grid as dag
import dash_mantine_components as dmc
import plotly.graph_objects as go
from dash import dcc, html

from spectra.allocation.methods.registry import METHODS, offered
from spectra.figures.theme import FONT, empty
from spectra_dashboard.access.library import Library
from spectra_dashboard.registry import PAGES
from spectra_dashboard.view import View

GRAPH: Any = {"displayModeBar": False, "responsive": True, "showTips": False}
GRID_THEME = (
    "themeQuartz.withParams({backgroundColor: 'transparent', foregroundColor: 'var(--ink)', "
    "borderColor: 'var(--rule)', headerBackgroundColor: 'transparent', "
    "headerTextColor: 'var(--muted)', accentColor: 'var(--accent)', "
    "rowHoverColor: 'var(--wash)', selectedRowBackgroundColor: 'var(--wash)', "
    "menuBackgroundColor: 'var(--paper)', wrapperBorder: false, headerFontWeight: 500, "
    "headerColumnResizeHandleColor: 'transparent', "
    f'columnBorder: false, fontSize: 13, spacing: 7, fontFamily: "{FONT}"}})'
)


def shell_quoted(name: str) -> str:
    """A name as a word of a command line, and never as an option."""
    return quote(f"./{name}" if name.startswith("-") else name)


def escaped(label: int | str) -> int | str:
    """A label that a figure shows literally: strings are markup there."""
    return escape(label, quote=False) if isinstance(label, str) else label


def titles(name: str, more: str = "") -> html.Div:
    """Title of a page, its line in the registry, and more text."""
    line = PAGES.entries[name].summary
    lead = f"{line[0].upper()}{line[1:]}. {more}".rstrip()
    return html.Div(
        [html.H1(PAGES[name].title), html.P(lead, className="lead")], className="titles"
    )


def head(library: Library, view: View, name: str, more: str = "") -> list[Any]:
    """Title of a page, its run, and the age of the run's data."""
    of_run = [
        run_select(library, view.run),
        html.Span(id="status", className="status", role="status"),
        live_switch(),
    ]
    return [html.Div([titles(name, more), html.Div(of_run, className="of-run")], className="head")]


def live_switch() -> dmc.Switch:
    """Switch for whether the page follows the run; it keeps its state from page to page."""
    return dmc.Switch(
        id="live",
        label="Live",
        checked=True,
        size="xs",
        persistence=True,
        persistence_type="session",
    )


def run_select(library: Library, run: str, name: str = "run", label: str = "Run") -> dmc.Select:
    """A choice of a run, bound to the field `name` of the address."""
    options = [{"value": r.name, "label": r.label} for r in library.runs.values()]
    return select(name, label, options, run, searchable=True, w=240)


def select(
    name: str, label: str, options: Sequence[Any], value: str | None, **more: Any
) -> dmc.Select:
    """A choice of one option, bound to a field of the view."""
    return dmc.Select(
        id={"control": name},
        label=label,
        data=list(options),
        value=value,
        allowDeselect=False,
        size="xs",
        checkIconPosition="right",
        **{"comboboxProps": {"shadow": "sm"}, **more},
    )


def method_options(target: str | None = None) -> list[dict[str, Any]]:
    """Methods that need only spectra: name, one line, and whether a target is accepted."""
    return [
        {
            "value": name,
            "label": name,
            "summary": METHODS.entries[name].summary,
            "disabled": not (target is None or target in METHODS[name].targets),
        }
        for name in offered()
    ]


def method_select(view: View, name: str, label: str, options: Sequence[Any], **more: Any) -> Any:
    """A choice of one method, each with its line below its name."""
    return select(
        name,
        label,
        options,
        getattr(view, name),
        renderOption={"function": "withSummary"},
        maxDropdownHeight=420,
        comboboxProps={"shadow": "sm", "width": 300, "position": "bottom-start"},
        **more,
    )


def segments(name: str, label: str, options: Sequence[Any], value: str) -> html.Div:
    """A choice among few options, bound to a field of the view."""
    return html.Div(
        [
            html.Span(label, className="label"),
            dmc.SegmentedControl(
                id={"control": name}, data=list(options), value=value, size="xs", radius="md"
            ),
        ],
        className="segments",
        role="group",
        **attributes(aria_label=label),
    )


def defaults(**values: Any) -> dcc.Store:
    """Values of the page's controls if the address says nothing."""
    return dcc.Store(id="defaults", data=values)


def attributes(**given: str) -> dict[str, Any]:
    """Attributes of an element, with dashes in their names."""
    return {name.replace("_", "-"): value for name, value in given.items()}


def controls(*children: Any) -> html.Div:
    """A row of controls."""
    return html.Div(
        list(children), className="controls", role="region", **attributes(aria_label="Choices")
    )


def section(title: str, *children: Any, lead: str = "") -> html.Section:
    """A part of a page."""
    heading = [html.H2(title), html.P(lead, className="lead") if lead else None]
    return html.Section([*heading, *children])


def figure(
    identity: Any, *, height: int = 0, drawn: go.Figure | None = None, wait: bool = True
) -> html.Div:
    """A figure that can be saved and shows when it is being drawn; `height` is its room."""
    if drawn is not None:
        height = int(drawn.layout.height)
    graph = dcc.Graph(
        id=identity,
        figure=empty("", height=height) if drawn is None else drawn,
        config=GRAPH,
        style={"minHeight": f"{height}px"},
    )
    return html.Div(
        [
            dcc.Loading(graph, delay_show=400, type="dot", color="var(--accent)")
            if wait
            else graph,
            html.Div(
                [
                    html.Button(
                        kind.upper(),
                        type="button",
                        className="save",
                        title=f"Save this figure as {kind.upper()}",
                        **attributes(data_save=kind),
                    )
                    for kind in ("png", "svg")
                ],
                className="saves",
            ),
        ],
        className="figure",
    )


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[Any], **more: Any) -> dag.AgGrid:
    """Numbers to sort and filter; each column is a name, or an AG Grid definition."""
    named = [c if isinstance(c, dict) else {"field": c} for c in columns]
    # AG Grid would capitalise the fields' names
    definitions = [{"headerName": c["field"], "tooltipField": c["field"], **c} for c in named]
    options = {
        "theme": {"function": GRID_THEME},
        "domLayout": "autoHeight" if len(rows) <= 12 else "normal",
        "suppressFieldDotNotation": True,
        "suppressColumnVirtualisation": True,
        "enableCellTextSelection": True,
        **more.pop("options", {}),
    }
    height = {} if options["domLayout"] == "autoHeight" else {"height": "420px"}
    return dag.AgGrid(
        rowData=list(rows),
        columnDefs=definitions,
        defaultColDef={"sortable": True, "resizable": True, "minWidth": 84},
        columnSize="responsiveSizeToFit",
        dashGridOptions=options,
        className="",
        style={"width": "100%", **height},
        **more,
    )


def numbers_below(identity: str) -> dmc.Accordion:
    """The table behind the figures, created when it is opened."""
    return dmc.Accordion(
        dmc.AccordionItem(
            [
                dmc.AccordionControl("The numbers"),
                dmc.AccordionPanel(html.Div(loading(), id=identity)),
            ],
            value="open",
        ),
        id=f"{identity}-fold",
        chevronPosition="left",
        variant="default",
        className="fold",
    )


def waiting(heading: Sequence[Any]) -> html.Div:
    """Page of a run without a snapshot; laid out anew once there is one."""
    text = "The run takes its first one at the start; it will appear here by itself."
    return html.Div([*heading, defaults(), card("No snapshot yet", text)])


def loading() -> html.Div:
    """Placeholder for content that is loading."""
    return html.Div([dmc.Skeleton(h=18, w="30%", mb=12), dmc.Skeleton(h=180)], className="loading")


def card(title: str, *text: Any) -> html.Div:
    """A message instead of a page."""
    return html.Div([html.H2(title), *(html.P(t) for t in text)], className="card", role="alert")


def broken(library: Library, view: View, reason: str) -> html.Div:
    """Page for a store that cannot be read."""
    return html.Div(
        [
            run_select(library, view.run),
            defaults(),
            card(
                "This cannot be shown",
                reason,
                "Choose another run above, or go back to the table of runs.",
            ),
            html.Span(id="status", hidden=True),
        ]
    )


def nothing_here() -> html.Div:
    """Message instead of the table of runs when there are none."""
    return card(
        "No stores here yet",
        [
            "Record a run below the served folder, or scan a checkpoint into it: ",
            html.Code("spectra pretrain --out runs/first"),
            " or ",
            html.Code("spectra scan CHECKPOINT --out scan.zarr"),
            ". They appear here by themselves.",
        ],
    )
