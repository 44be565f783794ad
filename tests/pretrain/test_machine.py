"""What a run asks of the machine."""

from importlib.util import find_spec

import pytest
import torch

from spectra_data.errors import InputError
from spectra_pretrain.machine import SHORT, chosen, precision_line, set_attention
from tests.pretrain.runs import options_of
from tests.small import small_llama

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("changes", "device", "chosen"),
    [
        ({"precision": "bfloat16", "seq_len": SHORT}, CPU, "eager"),
        ({"precision": "bfloat16", "seq_len": SHORT + 1}, CPU, "sdpa"),
        ({"precision": "float32", "seq_len": SHORT}, CPU, "sdpa"),
        ({"precision": "bfloat16", "seq_len": SHORT}, CUDA, "sdpa"),
        ({"precision": "float32", "attention": "eager"}, CPU, "eager"),
    ],
)
def test_attention_is_what_is_fast_or_what_is_asked_for(inputs, changes, device, chosen):
    model = small_llama()
    set_attention(model, options_of(inputs, **changes), device)
    assert model.config._attn_implementation == chosen


@pytest.mark.skipif(find_spec("flash_attn") is not None, reason="it is installed")
def test_attention_that_cannot_be_had_is_refused(inputs):
    with pytest.raises(InputError, match="--attention flash_attention_2"):
        set_attention(small_llama(), options_of(inputs, attention="flash_attention_2"), CPU)


X86 = {"architecture": "x86_64", "amx_bf16": False, "avx512_bf16": False}
MACHINES = {
    "x86 without": (X86, CPU, "float32"),
    "x86 with AVX-512": (X86 | {"avx512_bf16": True}, CPU, "bfloat16"),
    "x86 with AMX": (X86 | {"amx_bf16": True}, CPU, "bfloat16"),
    "ARM without": ({"architecture": "arm64", "bf16": False}, CPU, "float32"),
    "ARM with": ({"architecture": "arm64", "bf16": True}, CPU, "bfloat16"),
    "of an earlier torch": (None, CPU, "float32"),
    "CUDA": (X86, CUDA, "bfloat16"),
    "CUDA without": (X86, CUDA, "float32"),
    "another device": (X86 | {"amx_bf16": True}, torch.device("mps"), "float32"),
}
"""Capabilities of a CPU, a device, and the precision that suits it."""


@pytest.fixture
def on(monkeypatch):
    """Make this machine look like another; returns its device."""

    def on(name: str) -> torch.device:
        capabilities, device, precision = MACHINES[name]
        if capabilities is None:
            monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
        else:
            monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation: precision == "bfloat16"
        )
        return device

    return on


@pytest.mark.parametrize("name", MACHINES)
def test_the_precision_is_the_one_that_the_machine_has_instructions_for(inputs, on, name):
    device = on(name)
    assert chosen(options_of(inputs), device).precision == MACHINES[name][2]
    for given in ("float32", "bfloat16"):
        assert chosen(options_of(inputs, precision=given), device).precision == given
    short = chosen(options_of(inputs, masters="bfloat16"), device)
    assert short.precision == "bfloat16"


def test_a_torch_without_kernels_for_the_instructions_computes_in_float32(inputs, on, monkeypatch):
    device = on("ARM with")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert chosen(options_of(inputs), device).precision == "float32"


@pytest.mark.parametrize("name", MACHINES)
def test_a_slow_precision_is_said(inputs, on, name):
    device = on(name)
    slow = "without" in name
    line = precision_line(options_of(inputs, precision="bfloat16"), device)
    assert ("--precision float32 needs more memory, but is faster here" in line) == slow
    short = options_of(inputs, precision="bfloat16", masters="bfloat16")
    line = precision_line(short, device)  # else the advice would be refused
    assert ("--precision float32 without --masters bfloat16 needs" in line) == slow
    line = precision_line(options_of(inputs, precision="float32"), device)
    assert ("has no instructions for bfloat16" in line) == slow
    assert line.startswith("computes in float32")
