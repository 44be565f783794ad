"""Memory that is reported is that of the work."""

import subprocess
import sys

import numpy as np
import pytest

from spectra.machine.memory import PROCESS, peak_memory_bytes, resident, resident_peak

SIZE = 300 << 20


@pytest.mark.skipif(not (PROCESS / "status").exists(), reason="needs Linux's /proc")
def test_the_peak_is_not_that_of_the_process_that_started_this_one():
    held = np.ones(SIZE // 8)
    code = "from spectra.machine.memory import peak_memory_bytes; print(peak_memory_bytes())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert int(found.stdout) < held.nbytes / 2
    assert peak_memory_bytes() >= resident_peak() >= resident() > held.nbytes
