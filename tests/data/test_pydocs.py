"""The corpus of documentation strings."""

import hashlib

import pytest

from spectra_data import pydocs
from spectra_data.documents import Skips


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A corpus of parts of the standard library and of two packages."""
    whole = pydocs._modules
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECTRA_CACHE", str(tmp_path_factory.mktemp("pydocs")))
        patch.setattr(pydocs, "PACKAGES", ("numpy", "rich"))
        patch.setattr(pydocs, "PACKAGE_BYTES", 100_000)
        patch.setattr(pydocs, "_modules", lambda root: whole(root)[:60])
        yield pydocs.PydocsSource()


@pytest.mark.slow
def test_it_is_about_eight_megabytes():
    manifest = pydocs.PydocsSource().manifest()
    assert 5_000_000 < manifest.bytes <= pydocs.TOTAL_BYTES + 200_000


def test_it_begins_with_the_standard_library_and_has_not_too_much_of_any_package(source):
    packages = source.manifest().packages
    assert list(packages) == [pydocs.STANDARD_LIBRARY, "numpy", "rich"]
    assert packages[pydocs.STANDARD_LIBRARY]["documents"] > 30
    assert 100_000 < packages["numpy"]["bytes"] < 150_000
    assert 0 < packages["rich"]["bytes"] < 150_000


def test_the_manifest_holds_the_hash_of_the_documents(source):
    documents = list(source.documents(Skips()))
    assert len(documents) == source.manifest().documents
    assert hashlib.sha256("\0".join(documents).encode()).hexdigest() == source.fingerprint()


def test_no_paragraph_occurs_twice(source):
    paragraphs = [p for d in source.documents(Skips()) for p in d.split("\n\n")]
    folded = [" ".join(p.split()) for p in paragraphs]
    assert len(set(folded)) == len(folded)


def test_definitions_are_found_in_the_order_of_the_source(tmp_path):
    file = tmp_path / "module.py"
    file.write_text(
        '"""The module has a long enough documentation string."""\n'
        "if True:\n"
        "    class A:\n"
        '        """The class has a long enough documentation string."""\n'
        "        async def f(self):\n"
        '            """The method has a long enough documentation string.\n\n'
        "            >>> this is a doctest and not English\n\n"
        "            | a | table | of | many | short | columns | 1 |\n"
        '            """\n'
        "try:\n    pass\nexcept ValueError:\n    def g():\n"
        '        """The handler has a long enough documentation string."""\n'
    )
    text = pydocs._document(file, set())
    kinds = [paragraph.split()[1] for paragraph in text.split("\n\n")]
    assert kinds == ["module", "class", "method", "handler"]


def test_a_file_that_cannot_be_parsed_is_listed(monkeypatch, tmp_path):
    (tmp_path / "bad.py").write_text("def (:")
    monkeypatch.setattr(pydocs, "PACKAGES", ())
    monkeypatch.setattr(pydocs, "_root", lambda package: tmp_path)
    documents, manifest = pydocs.collect()
    assert documents == []
    assert list(manifest.left_out) == [f"{pydocs.STANDARD_LIBRARY}: bad.py"]


def test_a_line_of_blanks_ends_a_paragraph(tmp_path):
    file = tmp_path / "module.py"
    said = "A paragraph that is long enough to be prose"
    file.write_text(f'"""{said} one.\n  \n{said} two.\n\t\n{said} one.\n"""\n')
    assert pydocs._document(file, set()) == f"{said} one.\n\n{said} two."
