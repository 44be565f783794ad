"""Perplexity, accuracy, memory and speed: measured on what they say, nothing passed over."""

import dataclasses
import json
import math

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

import spectra
from spectra.cli import main
from spectra.commands import evaluate
from spectra.compression.compress import compress
from spectra.evaluation.perplexity import Text, perplexity, reference_tokens, text_tokens
from spectra.evaluation.resources import memory_of, size_of, speed_of
from spectra.evaluation.tasks import task_accuracy
from spectra.store.evaluations import evaluations
from spectra_data.errors import InputError
from spectra_data.sources import open_source
from spectra_data.tasks import load_task
from spectra_data.tokenizer import load_tokenizer
from tests.small import small_llama


@pytest.fixture(scope="module")
def stories(shared):
    return shared / "data" / "checkpoints" / "stories260K"


@pytest.fixture(scope="module")
def model(stories):
    return AutoModelForCausalLM.from_pretrained(stories).eval()


@pytest.fixture(scope="module")
def tokenizer(stories):
    return load_tokenizer(str(stories))


def direct(model, tokens, starts, length):
    """Cross-entropies of windows, one at a time: (window, length - 1)."""
    rows = []
    with torch.no_grad():
        for start in starts:
            window = tokens[start : start + length]
            logits = model(input_ids=window[None]).logits[0, :-1]
            rows.append(F.cross_entropy(logits, window[1:], reduction="none"))
    return torch.stack(rows)


def test_perplexity_is_the_mean_over_the_inner_tokens_of_full_windows(model):
    tokens = torch.randint(3, 500, (330,), generator=torch.Generator().manual_seed(0))
    found = perplexity(model, Text(tokens, "none"), seq_len=64, batch_size=3)
    rows = direct(model, tokens, range(0, 320, 64), 64)
    assert (found.windows, found.tokens, found.seq_len) == (5, 5 * 63, 64)
    assert found.nll == pytest.approx(float(rows.mean()), rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(found.nll))
    assert found.losses == pytest.approx(rows.mean(dim=1).tolist(), rel=1e-4)
    assert perplexity(model, Text(tokens, "none"), seq_len=64, windows=2).windows == 2


def test_a_stride_counts_every_token_once_with_more_before_it(model):
    tokens = torch.randint(3, 500, (200,), generator=torch.Generator().manual_seed(0))
    found = perplexity(model, Text(tokens, "none"), seq_len=64, stride=16)
    starts = range(0, 200 - 64 + 1, 16)
    rows = direct(model, tokens, starts, 64)
    wanted = torch.cat([rows[0], *(row[-16:] for row in rows[1:])])
    assert found.tokens == len(wanted) == 63 + 16 * (len(starts) - 1)
    assert found.nll == pytest.approx(float(wanted.mean()), rel=1e-5)


def test_a_beginning_token_before_every_window_is_context_only(model):
    tokens = torch.randint(3, 500, (140,), generator=torch.Generator().manual_seed(0))
    found = perplexity(model, Text(tokens, "windows", bos_token=1), seq_len=64)
    rows = []
    with torch.no_grad():
        for start in (0, 63):
            window = torch.cat([torch.tensor([1]), tokens[start : start + 63]])
            logits = model(input_ids=window[None]).logits[0, :-1]
            rows.append(F.cross_entropy(logits, window[1:], reduction="none"))
    assert (found.windows, found.tokens) == (2, 126)
    assert found.nll == pytest.approx(float(torch.stack(rows).mean()), rel=1e-5)


def test_beginning_tokens_lie_where_they_were_asked_for(tokenizer, tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "Once upon"}\n{"text": "a time"}\n')
    source = open_source(str(tmp_path / "t.jsonl"))
    plain = text_tokens(source, tokenizer, bos="none").tokens.tolist()
    bos = tokenizer.bos_token_id
    assert bos not in plain
    assert text_tokens(source, tokenizer, bos="start").tokens.tolist() == [bos, *plain]
    each = text_tokens(source, tokenizer, bos="windows")
    assert (each.tokens.tolist(), each.bos_token) == (plain, bos)
    own = text_tokens(source, tokenizer).tokens.tolist()
    assert own == tokenizer("Once upon\n\na time")["input_ids"]


def test_the_references_text_is_its_first_documents_joined_by_spaces(tokenizer, tmp_path):
    lines = [json.dumps({"text": f"story {i}"}) for i in range(1200)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    found = reference_tokens(open_source(str(tmp_path / "t.jsonl")), tokenizer)
    text = " ".join(f"story {i}" for i in range(1100))
    assert found.tokens.tolist() == tokenizer(text)["input_ids"]


def test_a_window_that_is_not_finite_is_never_passed_over():
    broken = small_llama()
    broken.model.embed_tokens.weight.data[7] = torch.nan
    tokens = torch.arange(48) % 6
    tokens[40] = 7
    assert perplexity(broken, Text(tokens, "none"), seq_len=16, windows=2).windows == 2
    with pytest.raises(InputError, match=r"window 2 \(tokens 32 to 48\) is nan"):
        perplexity(broken, Text(tokens, "none"), seq_len=16)


def test_what_gives_no_window_is_said(model):
    with pytest.raises(InputError, match="has 10 tokens, too few for a window of 64"):
        perplexity(model, Text(torch.arange(10), "none"), seq_len=64)
    with pytest.raises(InputError, match="stride of 70"):
        perplexity(model, Text(torch.arange(100), "none"), seq_len=64, stride=70)


class Scripted:
    """A model that says what it was told to, by the end of the prompt."""

    def __init__(self, tokenizer, answers):
        self.tokenizer, self.answers = tokenizer, answers
        self.config = small_llama(max_position_embeddings=4096).config
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def parameters(self):
        return iter([self.weight])

    def generate(self, input_ids, attention_mask, max_new_tokens, **_):
        rows = []
        for row, mask in zip(input_ids, attention_mask, strict=True):
            prompt = self.tokenizer.decode(row[mask.bool()], skip_special_tokens=True)
            said = next(a for question, a in self.answers.items() if question in prompt)
            rows.append(
                self.tokenizer(said, add_special_tokens=False)["input_ids"][:max_new_tokens]
            )
        longest = max(map(len, rows))
        rows = [r + [self.tokenizer.eos_token_id or 0] * (longest - len(r)) for r in rows]
        return torch.cat([input_ids, torch.tensor(rows)], dim=1)


def test_an_answer_that_cannot_be_read_is_wrong_and_counted(tokenizer, shared):
    examples = load_task("coinflip", shared / "data" / "tasks")[:6]
    said = [" yes", " no", " yes.", " perhaps", " No", ""]
    questions = [e.prompt[3:60] for e in examples]
    model = Scripted(tokenizer, dict(zip(questions, said, strict=True)))
    found = task_accuracy(model, tokenizer, "coinflip", examples, batch_size=4)
    right = sum(s.strip(" .").lower() == e.answer for s, e in zip(said, examples, strict=True))
    assert (found.correct, found.total, found.unparsed) == (right, 6, 2)
    assert found.accuracy == right / 6


def test_padding_changes_no_answer(model, tokenizer, shared):
    examples = load_task("svamp", shared / "data" / "tasks")[:5]
    alone = task_accuracy(model, tokenizer, "svamp", examples, batch_size=1)
    together = task_accuracy(model, tokenizer, "svamp", examples, batch_size=5)
    assert dataclasses.asdict(alone) == dataclasses.asdict(together)


def test_sizes_are_counted_with_factors_in_the_place_of_matrices(stories, tmp_path):
    scan = spectra.scan(str(stories), tmp_path / "scan.zarr")
    made = compress(str(stories), spectra.allocate(scan, err=0.5), tmp_path / "c")
    size = size_of(AutoModelForCausalLM.from_pretrained(made.path))
    assert size.block_parameters == made.rank_map.parameters
    assert size.parameters == made.parameters
    assert size.weight_bytes == 4 * size.parameters


def test_longer_contexts_take_more_for_keys_and_values(model):
    short, long = memory_of(model, [32, 128])
    config = model.config
    head = config.hidden_size // config.num_attention_heads
    token = 2 * 4 * config.num_hidden_layers * config.num_key_value_heads * head
    assert (short.cache_bytes, long.cache_bytes) == (32 * token, 128 * token)
    assert short.peak_bytes > size_of(model).weight_bytes


def test_speed_counts_all_tokens_of_a_batch(model):
    found = speed_of(model, context=16, new_tokens=2, batch_size=3, repeats=1)
    assert found.prefill > 0
    assert found.decode > 0
    assert (found.context, found.new_tokens, found.batch_size) == (16, 2, 3)


def test_the_command_prints_what_design_names(stories, shared, tmp_path, capsys):
    text = str(shared / "data" / "text" / "wikitext2-valid.txt")
    options = ["--data", text, "--seq-len", "64", "--windows", "4"]
    arguments = ["evaluate", str(stories), *options, "--contexts", "64", "--speed", "--json"]
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    keys = "perplexity nll windows tokens seq_len bos parameters block_parameters bytes_on_disk"
    assert {*keys.split(), "peak_memory_bytes", "tokens_per_second"} <= found.keys()
    assert found["windows"] == 4
    assert found["memory"][0]["context"] == 64
    tasks = ["--task", "boolq", "--task-data", str(shared / "data" / "tasks"), "--windows", "3"]
    assert main(["evaluate", str(stories), *tasks, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"accuracy", "correct", "total", "unparsed", "seed"} <= found.keys()
    assert found["total"] == 3


@pytest.mark.parametrize("native", [pytest.param(True, marks=pytest.mark.slow), False])
def test_bfloat16_is_never_chosen_on_a_cpu_and_said_if_it_is_slow(
    stories, tokenizer, shared, tmp_path, capsys, monkeypatch, native
):
    whole = tmp_path / "model"
    short = AutoModelForCausalLM.from_pretrained(stories, dtype=torch.bfloat16)
    short.save_pretrained(whole)
    tokenizer.save_pretrained(whole)
    monkeypatch.setattr(evaluate, "is_native", lambda device: native)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    data = ["--data", str(shared / "data/text/books.jsonl.gz"), "--seq-len", "32"]
    for given, dtype in (
        ([], "float32"),
        (["--device", "auto"], "float32"),
        (["--dtype", "auto"], "bfloat16"),
        (["--dtype", "bfloat16"], "bfloat16"),
    ):
        assert main(["evaluate", str(whole), *data, "--windows", "2", "--json", *given]) == 0
        said = capsys.readouterr()
        assert json.loads(said.out)["dtype"] == dtype
        slow = dtype == "bfloat16" and not native
        assert ("--dtype float32 needs more memory, but is faster here" in said.err) == slow


def test_a_measured_perplexity_is_added_to_the_scans_store(
    stories, shared, tmp_path, capsys, monkeypatch
):
    text = str(shared / "data" / "text" / "wikitext2-valid.txt")
    store = tmp_path / "scan.zarr"
    rank_map = spectra.allocate(spectra.scan(str(stories), store), err=0.5)
    made = compress(str(stories), rank_map, tmp_path / "c")
    options = ["--data", text, "--seq-len", "64", "--windows", "2", "--store", str(store), "--json"]
    assert main(["evaluate", str(made.path), *options]) == 0
    found = json.loads(capsys.readouterr().out)
    (kept,) = evaluations(spectra.open(store))
    assert kept.perplexity == found["perplexity"]
    assert kept.data == "wikitext2-valid.txt"
    assert (kept.err, kept.budget) == (made.rank_map.err, made.rank_map.budget)
    assert (kept.allocation, kept.compression, kept.storage) == ("welore", "svd", "factors")
    assert main(["evaluate", str(stories), *options]) == 2
    assert "of a compressed checkpoint" in capsys.readouterr().err

    def full(*_):
        raise InputError("no space left")

    monkeypatch.setattr("spectra.store.evaluations.add_evaluation", full)
    assert (
        main(["evaluate", str(made.path), *options]) == 2
    )  # what was measured is told all the same
    told = capsys.readouterr()
    assert json.loads(told.out)["perplexity"] == found["perplexity"]
    assert "store" not in json.loads(told.out)
    assert "no space left" in told.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name either --data or --task"),
        (["--data", "nowhere.txt"], "nowhere.txt"),
        (["--task", "svamp", "--task-data", "nowhere"], "--task-data"),
        (["--data", "pydocs", "--windows", "0"], "--windows is at least 1"),
        (["--data", "pydocs", "--contexts", "0"], "lengths of at least 1"),
        (["--data", "pydocs", "--device", "tpu"], "no device 'tpu'"),
        (["--data", "pydocs", "--store", "nowhere.zarr"], "no store at nowhere.zarr"),
        (["--data", "pydocs", "--seq-len", "9999"], "not windows of 9999"),
        (["--data", "pydocs", "--protocol", "reference", "--stride", "8"], "its own stride"),
    ],
)
def test_wrong_input_is_one_line(stories, arguments, message, capsys):
    assert main(["evaluate", str(stories), *arguments]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
