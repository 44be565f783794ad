"""Faults: requests that no page sends, and errors in answering one, as lines of a log."""

import logging
import traceback

from dash.exceptions import DependencyException, InvalidResourceError
from flask import Response, request
from werkzeug.exceptions import HTTPException

from spectra_data.errors import InputError, first_line, printable

LOG = logging.getLogger("spectra_dashboard")


def log(what: str, error: Exception) -> None:
    """Log an error as one line that says where it was raised; with its traceback for debugging."""
    where = ""
    if not isinstance(error, InputError) and (frames := traceback.extract_tb(error.__traceback__)):
        name = frames[-1].filename.rpartition("/")[2]
        where = f" ({type(error).__name__} in {name}, line {frames[-1].lineno})"
    LOG.error("%s: %s%s", what, _short(error), where)
    LOG.debug("traceback of this", exc_info=error)


def refused(error: Exception) -> Response | HTTPException:
    """The answer to a request that Dash or Flask could not handle.

    Errors of callbacks do not come here: Dash hands them to the application.
    """
    if isinstance(error, HTTPException):
        return error
    if isinstance(error, DependencyException | InvalidResourceError):
        return Response("There is no such file.\n", status=404, mimetype="text/plain")
    log(f"a request to {printable(request.path)[:100]} could not be answered", error)
    said = "This is not a request that a page sends.\n"
    return Response(said, status=400, mimetype="text/plain")


def _short(error: Exception) -> str:
    return printable(first_line(error))[:300]
