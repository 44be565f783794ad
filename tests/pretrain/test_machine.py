"""What a run asks of the machine."""

from importlib.util import find_spec

import pytest
import torch

from spectra_data.errors import InputError
from spectra_pretrain.machine import SHORT, set_attention, slowness
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


def test_slow_precisions_are_told(inputs, monkeypatch):
    def told(precision: str, device: torch.device = CPU, **capabilities: object) -> bool:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
        return any(slowness(options_of(inputs, precision=precision), device))

    x86 = {"architecture": "x86_64", "amx_bf16": False, "avx512_bf16": False}
    assert told("bfloat16", **x86)
    assert not told("float32", **x86)
    assert not told("bfloat16", CUDA, **x86)
    assert not told("bfloat16", **(x86 | {"amx_bf16": True}))
    assert not told("bfloat16", architecture="aarch64")
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not list(slowness(options_of(inputs, precision="bfloat16"), CPU))
