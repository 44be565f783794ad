"""Losses of finetuning: behind a frozen head, of a teacher, of answers."""

import pytest
import torch

from spectra.calibration.text import tokenizer_of
from spectra.models.source import Source
from spectra_data.tasks import Example
from spectra_pretrain.batches import labels_of
from spectra_pretrain.finetuning.answers import (
    AnswerBatches,
    AnswerValidation,
    answered,
    held_out,
    padded,
)
from spectra_pretrain.finetuning.distillation import Distillation, divergence_of
from spectra_pretrain.finetuning.options import recipe
from spectra_pretrain.headloss import HeadLoss, objective_of
from spectra_pretrain.loop import own_loss
from tests.small import random_batch, small_llama


def masked(seed: int):
    ids = random_batch(seed)
    labels = ids.clone()
    labels[:, :5] = -100
    labels[0] = -100
    return {"input_ids": ids, "labels": labels}


def frozen_head(**changes):
    model = small_llama(**changes)
    model.lm_head.requires_grad_(False)
    return model


def test_the_loss_behind_a_frozen_head_is_the_models_own_with_its_gradients():
    model = frozen_head()
    batch = masked(1)
    ours = objective_of(model, batch, torch.autocast("cpu", enabled=False))
    assert isinstance(ours, HeadLoss)
    gradients = []
    for objective in (own_loss, ours):
        model.zero_grad()
        loss = objective(model, batch)
        (3 * loss).backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
        found = loss.item()
    assert found == pytest.approx(own_loss(model, batch).item(), rel=1e-6)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_a_trained_head_and_one_that_does_more_keep_their_own_loss():
    sample, plain = masked(1), torch.autocast("cpu", enabled=False)
    assert objective_of(small_llama(), sample, plain) is own_loss
    scaled = frozen_head()
    scaled.lm_head.register_forward_hook(lambda module, inputs, output: output * 3)
    assert objective_of(scaled, sample, plain) is own_loss


def test_a_teacher_that_agrees_teaches_nothing():
    student, teacher = small_llama(), small_llama().eval().requires_grad_(False)
    batch = masked(2)
    alone = Distillation(teacher, 1.0, 2.0)(student, batch)
    assert alone.item() == pytest.approx(0.0, abs=1e-6)
    half = Distillation(teacher, 0.5, 2.0)(student, batch)
    assert half.item() == pytest.approx(own_loss(student, batch).item() / 2, rel=1e-5)


def test_the_divergence_is_its_formula():
    torch.manual_seed(0)
    one, other = torch.randn(5, 7), torch.randn(5, 7)
    p, q = (other / 3).softmax(-1), (one / 3).softmax(-1)
    expected = (p * (p / q).log()).sum(-1).mean() * 9
    torch.testing.assert_close(divergence_of(one, other, 3.0), expected)


def test_of_a_question_only_the_answer_is_learnt(shared):
    tokenizer = tokenizer_of(Source(str(shared / "data/checkpoints/stories260K")), None)
    examples = [Example("Is it so? A:", "yes"), Example("A much longer question, is it? A:", "no")]
    found = answered(examples, tokenizer, 64)
    batch = padded(found)
    for row, said in enumerate((" Yes", " No")):
        learnt = batch["labels"][row]
        text = tokenizer.decode(learnt[learnt != -100], skip_special_tokens=True)
        assert text.strip() == said.strip()
    assert labels_of(batch) == sum(one.labels for one in found)
    assert batch["attention_mask"].sum() == sum(len(one.tokens) for one in found)
    short = answered(examples, tokenizer, 8)
    assert all(len(one.tokens) == 8 or one.tokens == found[i].tokens for i, one in enumerate(short))


def test_questions_come_in_an_order_of_the_seed_and_all_of_them_an_epoch():
    from spectra_pretrain.finetuning.answers import Answered

    examples = [Answered((i, i + 1), 1) for i in range(10)]
    batches = AnswerBatches(examples, seed=3, size=5)
    epoch = torch.cat([batches.read(step)["input_ids"][:, 0] for step in (0, 1)])
    assert sorted(epoch.tolist()) == list(range(10))
    again = AnswerBatches(examples, seed=3, size=5).read(1)["input_ids"]
    assert torch.equal(batches.read(1)["input_ids"], again)
    train, apart = held_out(examples, 0.2, seed=0)
    assert (len(train), len(apart)) == (8, 2)
    for tokens, count in ((1, 1), (5, 2), (6, 3), (100, 10)):
        kept = AnswerValidation.of(examples, tokens, size=2)
        assert sum(len(batch["labels"]) for batch in kept.batches()) == count


@pytest.mark.parametrize(
    ("task", "steps"),
    [("commonsenseqa", 5000), ("svamp", 500), ("boolq", 2000), ("coinflip", 500), ("date", 1000)],
)
def test_the_recipes_are_those_of_tables_8_and_9(task, steps):
    text, tuned = recipe(None), recipe(task)
    assert (text.steps, text.batch.seq_len, text.batch.batch_size) == (10_000, 1024, 1)
    assert (text.optimizer.learning_rate, text.optimizer.warmup * text.steps) == (5e-5, 500)
    assert (tuned.steps, tuned.batch.seq_len, tuned.batch.batch_size) == (steps, 512, 8)
    assert tuned.optimizer.learning_rate == 1e-4
