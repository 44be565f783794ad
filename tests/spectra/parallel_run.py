"""Started by torchrun: a few recorded steps of a small model, in one of several set-ups."""

import sys

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import spectra
from tests.small import random_batch, small_llama, small_model


def build(setup, family):
    model = small_llama() if family == "llama" else small_model(family)
    if setup == "ddp":
        return DistributedDataParallel(model)
    if setup == "fsdp":
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
    return model


def main(setup, store, family="llama"):
    """`setup` is ddp, fsdp, copies (gradients averaged by the loop), or alone (one process)."""
    rank, count = 0, 1
    if setup != "alone":
        dist.init_process_group("gloo")
        rank, count = dist.get_rank(), dist.get_world_size()
    model = build(setup, family)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    kinds = ("weight", "gradient", "training_gradient", "update")
    options = {"every": 2, "steps": 5, "sketch": 64, "gradients": True, "subspaces": 2}
    with spectra.record(
        model, optimizer, store, probe=random_batch(0, windows=3), spectra=kinds, **options
    ) as recorder:
        for step in range(5):
            batch = random_batch(100 + step)[rank::count]
            model(input_ids=batch, labels=batch).loss.backward()
            if setup == "copies":
                for parameter in model.parameters():
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= count
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
        own = len(recorder._own)
    print(f"rank {rank} measured {own} of {len(recorder.layout.matrices)} matrices")
    assert recorder.stopped is None, recorder.stopped
    if setup != "alone":
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
