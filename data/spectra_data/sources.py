"""Opens the corpus that a user names after ``--data``."""

from pathlib import Path

from spectra_data.documents import DocumentSource
from spectra_data.errors import InputError
from spectra_data.files import FileSource
from spectra_data.hub import HubSource, c4
from spectra_data.pydocs import PydocsSource

TEXT_FIELD = "text"
"""Default field or column of a document's text."""


def open_source(spec: str, text_field: str = TEXT_FIELD) -> DocumentSource:
    """Open a corpus by its name or path.

    Parameters
    ----------
    spec
        ``pydocs``; ``c4``; ``hf:NAME`` or ``hf:NAME:CONFIG``; or the path of a file or folder.
    text_field
        Field or column that holds a document's text, if there are fields.

    Raises
    ------
    InputError
        When nothing can be opened under that name.
    """
    if not spec:
        raise InputError("a data source is `pydocs`, `c4`, `hf:NAME`, or a path; this one is empty")
    if spec == "pydocs":
        return PydocsSource()
    if spec == "c4":
        return c4(text_field)
    if spec.startswith("hf:"):
        dataset, _, config = spec.removeprefix("hf:").partition(":")
        if not dataset:
            raise InputError("`hf:` needs a data set's name after it, e.g. hf:allenai/c4:en")
        return HubSource(dataset, config or None, text_field=text_field)
    return FileSource(Path(spec).expanduser(), text_field)
