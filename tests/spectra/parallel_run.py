"""In each of several processes: a few recorded steps of a small model, in one of some set-ups."""

import gc
import os
import sys
import time

import torch
import torch.distributed as dist
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

import spectra
from spectra.recording import measure, processes
from spectra.store.writer import StoreWriter
from spectra_data.errors import InputError
from tests.small import random_batch, small_llama, small_model


def build(setup, family):
    model = small_llama() if family == "llama" else small_model(family)
    if setup == "ddp":
        return DistributedDataParallel(model)
    if setup.startswith("fsdp"):
        short = torch.bfloat16 if setup == "fsdp in bfloat16" else None
        policy = MixedPrecisionPolicy(param_dtype=short)
        for layer in model.model.layers:
            fully_shard(layer, mp_policy=policy)
        fully_shard(model, mp_policy=policy)
    return model


def main(setup, store, family="llama"):
    """`setup`: ddp, fsdp, "fsdp in bfloat16", copies (the loop averages gradients), or alone."""
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
        del model, optimizer, recorder  # torch's groups can wait for ever if destroyed before DDP
        gc.collect()
        dist.destroy_process_group()


def lonely(store):
    """Only the first process records."""
    dist.init_process_group("gloo")
    processes.HANDSHAKE_SECONDS = 3.0
    model = DistributedDataParallel(small_llama())
    optimizer = torch.optim.AdamW(model.parameters())
    if dist.get_rank() == 0:
        try:
            spectra.record(model, optimizer, store, probe=random_batch(0))
        except InputError as error:
            print(f"refused: {error}")
    else:
        time.sleep(6)


def failing(store, rank):
    """One process cannot go on recording; training continues in all of them."""
    dist.init_process_group("gloo")
    model = DistributedDataParallel(small_llama())
    optimizer = torch.optim.AdamW(model.parameters())
    recorder = spectra.record(model, optimizer, store, probe=random_batch(0), every=1)
    for step in range(4):
        if step == 2 and dist.get_rank() == int(rank):

            def full(*arguments):
                raise OSError(28, "No space left on device")

            StoreWriter.write_snapshot = measure.singular_values_of_many = full
        batch = random_batch(100 + step)
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    recorder.close()
    print(f"rank {dist.get_rank()} made {recorder.step} steps; {recorder.stopped}")
    del model, optimizer, recorder  # torch's groups can wait for ever if destroyed before DDP is
    gc.collect()
    dist.destroy_process_group()


def different(store):
    """The processes have different probe batches."""
    dist.init_process_group("gloo")
    model = DistributedDataParallel(small_llama())
    optimizer = torch.optim.AdamW(model.parameters())
    try:
        spectra.record(model, optimizer, store, probe=random_batch(dist.get_rank()))
    except InputError as error:
        print(f"refused: {error}")
    del model, optimizer
    gc.collect()
    dist.destroy_process_group()


SCENES = {"lonely": lonely, "failing": failing, "different": different}


def play(scene, *arguments):
    """One of the scenes, or a set-up of `main`."""
    SCENES[scene](*arguments) if scene in SCENES else main(scene, *arguments)


def take_part(rank, count, port, *arguments):
    """Play a scene as one of several processes that nobody but this has introduced."""
    names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "WORLD_SIZE": count}
    os.environ.update({name: str(value) for name, value in names.items()})
    os.environ.update(LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(count))
    play(*arguments)


if __name__ == "__main__":
    play(*sys.argv[1:])
