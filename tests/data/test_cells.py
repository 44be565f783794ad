"""Cells of CSV tables."""

import io

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectra_data.cells import inert


@pytest.mark.parametrize(
    "text",
    ["=1+1", "+A1", "-A1", "@SUM(1)", "\t=1", "\r=1", "\n=1", "=cmd|' /C calc'!A0", "-1+1", "=",
     "-", "\uff1d1+1", "\uff0b1", "\uff0d1", "\uff20SUM(1)", "--5", "+1.2.3", "-0x10", "-1,5",
     "-1 "],
)  # fmt: skip
def test_a_text_that_a_spreadsheet_would_run_begins_with_an_apostrophe(text):
    assert inert(text).startswith("'")
    assert inert(text).replace("'", "") == text.replace("'", "").replace("\r", "\\r")


@pytest.mark.parametrize("text", ["a;=1", "a\t-b", "a\n@SUM(1)"])
def test_so_does_what_a_locale_with_other_separators_takes_for_a_cell(text):
    assert inert(text) == f"{text[:2]}'{text[2:]}"


@pytest.mark.parametrize(
    "value",
    ["model.layers.0.self_attn.q_proj", "a-b", "q=1", "5", "-5", "+5", "-1.5e-30", "+.5", "-3.",
     "1e5", "", "'", "(1)", -5, 1.5, float("-inf"), None, True],
)  # fmt: skip
def test_numbers_and_names_stay(value):
    assert inert(value) is value


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers())
def test_every_number_written_as_text_stays(number):
    assert inert(str(number)) == str(number)


TEXTS = st.text(st.sampled_from("=+-@;\t\r\n'\" ,ab1.") | st.characters(exclude_categories=("C",)))


@given(TEXTS)
def test_every_text_is_read_back_as_one_cell_that_starts_no_formula(text):
    table = pd.DataFrame({"name": [inert(text)], "value": [-1.5]}).to_csv(index=False)
    read = pd.read_csv(io.StringIO(table), dtype={"name": str}, keep_default_na=False)
    assert read.values.tolist() == [[inert(text), -1.5]]
    assert inert(text)[:1] not in tuple("=+-@\t\r\n") or float(text) is not None
