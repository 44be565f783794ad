"""Lengths in a GGUF header are checked before they are trusted."""

import struct

import pytest

from spectra.checkpoint.gguf_header import LARGEST_ARRAY, require_header
from spectra_data.errors import InputError


def _file(tmp_path, fields=b"", count=0, tensors=b"", tensor_count=0, version=3, order="<"):
    path = tmp_path / "model.gguf"
    head = struct.pack(order + "IQQ", version, tensor_count, count)
    path.write_bytes(b"GGUF" + head + fields + tensors + bytes(64))
    return path


def _field(value):
    return struct.pack("<Q", 1) + b"k" + value


@pytest.mark.parametrize("order", ["<", ">"])
def test_an_empty_header_of_either_byte_order_is_one(tmp_path, order):
    require_header(_file(tmp_path, order=order))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (struct.pack("<Q", 1 << 62), "ends inside its header"),
        (_field(struct.pack("<I", 77)), "unknown type 77"),
        (_field(struct.pack("<IIQ", 9, 0, LARGEST_ARRAY + 1)), "arrays have"),
        (_field(struct.pack("<IIQ", 9, 0, 1000)), "ends inside its header"),
        (_field(struct.pack("<IIQ", 9, 8, 1000)), "ends inside its header"),
        (_field(struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 9), "at depth 5"),
    ],
)
def test_lengths_beyond_the_file_are_one_line(tmp_path, fields, message):
    with pytest.raises(InputError, match=message):
        require_header(_file(tmp_path, fields, count=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 1 << 60}, "announces 0 tensors and"),
        ({"tensor_count": 1 << 60}, "announces"),
        ({"version": 99}, "version 99; 2 and 3 are read"),
        (
            {"tensor_count": 1, "tensors": struct.pack("<QI", 0, 1 << 31)},
            "a tensor has 2147483648 dimensions",
        ),
    ],
)
def test_counts_that_cannot_be_are_one_line(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        require_header(_file(tmp_path, **options))


def test_what_is_not_gguf_is_said(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GG")
    with pytest.raises(InputError, match="fewer than 24 bytes"):
        require_header(path)
    path.write_bytes(bytes(100))
    with pytest.raises(InputError, match="does not begin as a GGUF file"):
        require_header(path)
