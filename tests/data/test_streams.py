"""Standard output and error."""

import io
import sys

import pytest

from spectra_data.streams import PlainStream, behind, plain_streams

ODD = "\x1b]0;title\x07 \x1b[2J \x9b31m \u202e \u2028"


def written(text):
    stream = io.StringIO()
    assert PlainStream(stream).write(text) == len(text)
    return stream.getvalue()


def test_what_a_terminal_would_obey_is_escaped():
    shown = r"\x1b]0;title\x07 \x1b[2J \x9b31m \u202e \u2028"
    assert written(f"a {ODD} b\n") == f"a {shown} b\n"
    assert written("before\rafter") == r"before\rafter"


@pytest.mark.parametrize("text", ["plain\n\ttext", "größer 模型", "", "\n"])
def test_other_texts_stay(text):
    assert written(text) == text


@pytest.mark.parametrize("text", ["\r 10%|█    |", "\r", "\n\n", "\x1b[A\x1b[A", "\n\x1b[A"])
def test_bars_of_other_libraries_move_as_they_must(text):
    assert written(text) == text


def test_everything_printed_is_escaped_and_the_streams_return(capsys):
    before = sys.stdout, sys.stderr
    with plain_streams(), plain_streams():
        print(ODD)
        sys.stdout.writelines([ODD, "\n"])
        print(ODD, file=sys.stderr, flush=True)
        assert behind(sys.stdout) is before[0]
    assert (sys.stdout, sys.stderr) == before
    out, errors = capsys.readouterr()
    assert out == 2 * errors
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(out)
