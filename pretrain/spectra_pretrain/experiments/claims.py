"""The paper's claims about finetuning, compared with what was measured."""

from collections.abc import Iterator, Sequence
from statistics import fmean

from spectra.experiments.ledger import Row
from spectra_pretrain.experiments.summary import (
    LEVEL,
    Sample,
    Verdict,
    chance,
    measured,
    of,
    sample,
)


def claims1(rows: Sequence[Row]) -> Iterator[str]:
    """Claims of figure 1."""
    lrc, full = of(rows, "lrc"), of(rows, "full")
    claim = "LRC-only reaches the perplexity of full finetuning"
    yield _perplexities(claim, lrc, full, ("below", "level"))
    before = full[0]["evaluations"][0]["validation_loss"]
    after, whole = sample(lrc, "validation_loss").mean, sample(full, "validation_loss").mean
    if whole < before:
        share = (before - after) / (before - whole)
        yield f"LRC-only gains {share:.0%} of what full finetuning gains in loss"
    else:
        yield (
            f"full finetuning gains nothing here, from {before:.4g} to {whole:.4g} nats: try a "
            "lower --learning-rate"
        )
    yield _speed("LRC-only", lrc, "full finetuning", full, 3.0)
    yield _trained(lrc, full, 0.35)


def claims5(rows: Sequence[Row]) -> Iterator[str]:
    """Claims of figure 5."""
    lrc, nlrc = of(rows, "lrc"), of(rows, "nlrc")
    yield _perplexities("LRC-only is below N-LRC-only in perplexity after equal tokens", lrc, nlrc)
    yield _speed("LRC-only", lrc, "N-LRC-only", nlrc, 2.0)
    yield _trained(lrc, nlrc, 1 / 3)


def claims8(rows: Sequence[Row]) -> Iterator[str]:
    """Claims of figure 8."""
    losses = {t: sample(of(rows, t), "validation_loss").values for t in ("lrc", "full", "lora")}
    near, far = (
        Sample(tuple(abs(a - b) for a, b in zip(losses[train], losses["full"], strict=True)))
        for train in ("lrc", "lora")
    )
    yield _compared(
        "LRC-only follows the loss of full finetuning more closely than LoRA does",
        near.against(far, LEVEL * fmean(losses["full"])),
        ("below",),
        f"{near} against {far} nats away",
    )
    yield _speed("LRC-only", of(rows, "lrc"), "LoRA", of(rows, "lora"), 1.0)
    yield from _doubtful(rows)


def claims4(rows: Sequence[Row]) -> Iterator[str]:
    """Claims of table 4."""
    for err in dict.fromkeys(row["err"] for row in rows):
        others = [of(rows, train, err) for train in ("lora", "galore")]
        best = min(others, key=lambda runs: sample(runs, "validation_perplexity").mean)
        claim = f"at ERR {err:.0%} LRC-only is below LoRA and GaLore in perplexity"
        yield _perplexities(claim, of(rows, "lrc", err), best)


def claims_of_tasks(rows: Sequence[Row]) -> Iterator[str]:
    """Claims of table 5."""
    for err in dict.fromkeys(row["err"] for row in rows if row["err"] > 0):
        others = [of(rows, train, err) for train in ("lora", "galore")]
        best = max(others, key=lambda runs: sample(runs, "accuracy").mean)
        lrc = of(rows, "lrc", err)
        mine, theirs = sample(lrc, "accuracy"), sample(best, "accuracy")
        ordered = (lrc, best) if mine.mean > theirs.mean else (best, lrc)
        noise = chance(*ordered)
        numbers = f"{mine.mean:.1%} against {theirs.mean:.1%}"
        yield _compared(
            f"at ERR {err:.0%} LRC-only is above LoRA and GaLore, in the mean over tasks",
            mine.against(theirs, noise),
            ("above",),
            f"{numbers}, certain to {noise:.1%} with so many questions",
        )
    yield from _doubtful(rows)


def _perplexities(
    claim: str,
    lower: Sequence[Row],
    higher: Sequence[Row],
    wanted: Sequence[Verdict] = ("below",),
) -> str:
    a, b = (sample(runs, "validation_perplexity") for runs in (lower, higher))
    numbers = f"{lower[0]['train']} {a} against {higher[0]['train']} {b}"
    return _compared(claim, a.against(b), wanted, numbers)


def _doubtful(rows: Sequence[Row]) -> Iterator[str]:
    widths = [row["accuracy_high"] - row["accuracy_low"] for row in rows]
    unparsed = sum(row["unparsed"] for row in rows)
    yield (
        f"95 % intervals of accuracies are up to {max(widths):.0%} wide; {unparsed} of "
        f"{sum(row['total'] for row in rows)} answers could not be read and count as wrong"
    )


def _speed(one: str, mine: Sequence[Row], other: str, theirs: Sequence[Row], paper: float) -> str:
    speeds = [measured(runs, "step_tokens_per_second") for runs in (mine, theirs)]
    if speeds[0] is None or speeds[1] is None:
        return "the speed was not measured: a run was resumed after its last step"
    return (
        f"{one} trains {speeds[0] / speeds[1]:.2f} times the tokens/s of {other} "
        f"(paper: {'more' if paper == 1 else f'about {paper:g} times'})"
    )


def _trained(one: Sequence[Row], other: Sequence[Row], paper: float) -> str:
    share = one[0]["trained_parameters"] / other[0]["trained_parameters"]
    return f"it trains {share:.2f} of the parameters (paper: about {paper:.2f})"


def _compared(claim: str, verdict: Verdict, wanted: Sequence[Verdict], numbers: str) -> str:
    """A claim of the paper, and the verdict here."""
    if verdict == "open":
        return f'undecided here (the paper: "{claim}"): {numbers}'
    return f'{"as in" if verdict in wanted else "UNLIKE"} the paper ("{claim}"): here {numbers}'
