"""What `wandb.watch` does while a model trains: a histogram of every gradient, at every backward.

Transcribed from what its documentation and source describe: a hook on every parameter that flattens
the gradient, finds its range, and counts 64 bins, every `log_freq` steps, on the device.
"""

import torch


class HistogramHooks:
    """Histograms of gradients, or of gradients and weights, as a context."""

    BINS = 64

    def __init__(self, model: torch.nn.Module, every: int) -> None:
        self.histograms: dict[str, tuple[torch.Tensor, float, float]] = {}
        self._model, self._every = model, every
        self._counts: dict[str, int] = {}

    def __enter__(self) -> "HistogramHooks":
        self._handles = [
            parameter.register_hook(lambda gradient, name=name: self._see(name, gradient))
            for name, parameter in self._model.named_parameters()
        ]
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _see(self, name: str, gradient: torch.Tensor) -> None:
        count = self._counts[name] = self._counts.get(name, 0) + 1
        if count % self._every:
            return
        flat = gradient.detach().reshape(-1).float()
        flat = flat[torch.isfinite(flat)]
        least, most = flat.min().item(), flat.max().item()
        if least == most:
            most = least + 1.0
        counts = torch.histc(flat, bins=self.BINS, min=least, max=most)
        self.histograms[name] = counts.cpu(), least, most
