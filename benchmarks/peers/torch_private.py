"""DP-SGD in a client (Abadi et al. 2016, Algorithm 1) by `torch.func`: per-example gradients."""

from typing import Any

import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional


class PerExample:
  """Noised sums of clipped gradients of a model, whose parameters are changed in place."""

  def __init__(self, model: nn.Module, work: dict[str, Any]):
    self.work = work
    self.params = dict(model.named_parameters())

    def loss(params: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
      return functional.cross_entropy(functional_call(model, params, (x[None],)), y[None])

    self.gradients = vmap(grad(loss), in_dims=(None, 0, 0))

  def step(self, x: torch.Tensor, y: torch.Tensor) -> None:
    """Takes a step on a batch, which may be empty."""
    _, _, clip, noise = self.work['dp_sgd']
    rate = self.work['learning_rate'] / self.work['batch_size']
    with torch.no_grad():
      draw = {name: torch.randn_like(p).mul_(clip * noise) for name, p in self.params.items()}
      if len(x):
        detached = {name: p.detach() for name, p in self.params.items()}
        each = {name: g.flatten(1) for name, g in self.gradients(detached, x, y).items()}
        squares = torch.stack([torch.linalg.vector_norm(g, dim=1) for g in each.values()])
        norms = torch.linalg.vector_norm(squares, dim=0)
        factors = torch.clamp(clip / norms.clamp(min=1e-12), max=1.0)
        for name, g in each.items():
          draw[name].add_((factors @ g).view_as(draw[name]))
      for name, p in self.params.items():
        p.sub_(draw[name], alpha=rate)
