"""From an address to a view of an existing run."""

import functools
from collections.abc import Callable
from dataclasses import replace
from html import escape
from typing import Any

from dash.exceptions import PreventUpdate

from spectra.allocation.methods.registry import offered
from spectra.figures.theme import empty
from spectra_dashboard.access.library import Library
from spectra_dashboard.faults import log
from spectra_dashboard.registry import runs_needed
from spectra_dashboard.view import View
from spectra_data.errors import InputError


def view_at(library: Library, pathname: str | None, search: str | None) -> View:
    """View of an address; if it names no run, of the first, and if no snapshot, of the last.

    A run that does not exist stays named, so that the page can say so.
    """
    view = View.from_address(pathname, search)
    if not runs_needed(view.page):
        return view
    view = replace(view, run=view.run or next(iter(library.runs), ""))
    if not (view.beside in offered() or view.beside.removeprefix("map:") in library.maps):
        view = replace(view, beside="")
    return replace(
        view,
        step=_existing(library, view.run, view.step),
        other_step=_existing(library, view.other or view.run, view.other_step),
    )


def view_on(page: str, library: Library, pathname: str | None, search: str | None) -> View:
    """View of an address, for a callback of a page.

    Raises
    ------
    PreventUpdate
        When the address is another page's: the browser calls what it is about to leave, too.
    """
    view = view_at(library, pathname, search)
    if view.page != page:
        raise PreventUpdate
    return view


def _existing(library: Library, run: str, step: int | None) -> int | None:
    if step is None:
        return None
    try:
        return step if step in library.run(run).steps() else None
    except InputError:
        return None


def or_reason(*others: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a callback draw the reason if it cannot draw its figure; `others` go with the reason."""

    def wrapped(draw: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(draw)
        def safe(*given: Any) -> Any:
            try:
                return draw(*given)
            except PreventUpdate:
                raise
            except Exception as error:  # attributes of a store may hold anything
                figure = reason_figure(error)
            return (figure, *others) if others else figure

        return safe

    return wrapped


def reason_figure(error: Exception) -> Any:
    """A figure that says why it is empty."""
    if isinstance(error, InputError):
        return empty(escape(str(error), quote=False))
    log("a figure could not be drawn", error)
    return empty("This cannot be drawn: spectra verify says whether the store is whole.")
