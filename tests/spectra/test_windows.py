"""Commands where the system calls of Linux are missing."""

import json
import os
import subprocess
import sys


def test_what_windows_lacks_is_not_needed(tmp_path, shared):
    stories = str(shared / "data/checkpoints/stories260K")
    (tmp_path / "text.txt").write_text("a text of words that are trained on\n" * 400)
    run = ["pretrain", "--model", f"{stories}/config.json", "--data", "text.txt", "--out", "run"]
    run += ["--vocab-size", "300", "--seq-len", "16", "--batch-size", "2", "--steps", "2"]
    run += ["--record-every", "1", "--eval-tokens", "64", "--precision", "float32"]
    commands = [
        ["scan", stories, "--out", "s.zarr"],
        ["verify", "s.zarr"],
        ["allocate", "s.zarr", "--err", "0.5", "--out", "map.json"],
        ["compress", stories, "--map", "map.json", "--out", "c"],
        ["prune", stories, "--sparsity", "0.5", "--method", "magnitude", "--out", "p"],
        ["evaluate", "c", "--data", "text.txt", "--windows", "1", "--seq-len", "16"],
        ["report", "s.zarr", "--out", "report.html"],
        ["metrics", "s.zarr", "--out", "metrics.csv"],
        run,
        [*run, "--resume"],
        [*run[:-2], "--precision", "float32", "--out", "other", "--record-background", "wait"],
    ]
    ended = subprocess.run(
        [sys.executable, "-m", "tests.windows", json.dumps(commands)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])},  # noqa: PTH109
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.stdout.splitlines()[-1] == str([0] * 10 + [2]), ended.stderr
    assert "which Windows lacks: leave out background=" in ended.stderr
    assert list(tmp_path.rglob("*.partial")) == []
