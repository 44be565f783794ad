"""Commands where the system calls of Linux are missing, and the locale is ASCII."""

import json
import os
import subprocess
import sys

ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


def test_neither_what_windows_lacks_nor_a_locale_is_needed(tmp_path, shared):
    stories = str(shared / "data/checkpoints/stories260K")
    text = "a text of words from a café that are trained on\n" * 400
    (tmp_path / "π.txt").write_text(text, encoding="utf-8")
    run = ["pretrain", "--model", f"{stories}/config.json", "--data", "π.txt", "--out", "run"]
    run += ["--vocab-size", "300", "--seq-len", "16", "--batch-size", "2", "--steps", "2"]
    run += ["--record-every", "1", "--eval-tokens", "64", "--precision", "float32"]
    commands = [
        ["scan", stories, "--out", "s.zarr"],
        ["verify", "s.zarr"],
        ["allocate", "s.zarr", "--err", "0.5", "--out", "map.json"],
        ["compress", stories, "--map", "map.json", "--out", "c"],
        ["prune", stories, "--sparsity", "0.5", "--method", "magnitude", "--out", "p"],
        ["evaluate", "c", "--data", "π.txt", "--windows", "1", "--seq-len", "16"],
        ["report", "s.zarr", "--out", "report.html"],
        ["metrics", "s.zarr", "--out", "metrics.csv"],
        run,
        [*run, "--resume"],
        [*run[:-2], "--precision", "float32", "--out", "other", "--record-background", "wait"],
    ]
    ended = subprocess.run(
        [sys.executable, "-m", "tests.windows", json.dumps(commands)],
        cwd=tmp_path,
        env=os.environ | ASCII | {"PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])},  # noqa: PTH109
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.stdout.splitlines()[-1] == str([0] * 10 + [2]), ended.stderr
    assert "which Windows lacks: leave out background=" in ended.stderr
    assert list(tmp_path.rglob("*.partial")) == []
