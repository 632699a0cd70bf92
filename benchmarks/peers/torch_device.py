"""The works in PyTorch on one device, in one process: client after client, and all side by side.

`Loop` is the loop of `torch_loop.py` with its examples, parameters and steps on the device.
`Stacked` holds the weights of all clients of a round in one tensor each, and takes their steps
together by `torch.func.vmap`, which knows no LSTM.
"""

import pathlib
import time
from typing import Any

import numpy as np
import torch
from torch import func

from benchmarks.peers import torch_loop


class Loop(torch_loop.Trainer):
  """One client after another."""

  def __init__(self, folder: pathlib.Path, device: str):
    super().__init__(folder, torch.get_num_threads())
    self.device = device
    self.x, self.y = self.x.to(device), self.y.to(device)
    self.model.to(device)
    self.flat = torch.cat([p.detach().reshape(-1) for p in self.params])

  def summed(self, cohort: np.ndarray, seed: int) -> torch.Tensor:
    """Returns the sum of the clients' updates."""
    total = torch.zeros_like(self.flat)
    for client in cohort:
      total.add_(self.train(self.flat, int(client), seed))
    return total

  def round(self, number: int) -> float:
    """Runs a round and returns its seconds."""
    began, work = time.perf_counter(), self.work
    rng = np.random.default_rng([1, number])
    total = self.summed(rng.choice(work['num_clients'], work['cohort'], replace=False), number)
    if work['privacy']:
      clip, noise = work['privacy']
      total.add_(torch.randn_like(total), alpha=clip * noise)
    self.flat.sub_(total, alpha=1 / work['cohort'])
    if self.device != 'cpu':
      torch.cuda.synchronize()
    return time.perf_counter() - began


class Stacked(Loop):
  """All clients of a round side by side."""

  def __init__(self, folder: pathlib.Path, device: str):
    super().__init__(folder, device)

    def loss(params: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
      return self.loss(func.functional_call(self.model, params, (x,)), y)

    self.gradients = func.vmap(func.grad(loss))
    self.names = [name for name, p in self.model.named_parameters() if p.requires_grad]

  def summed(self, cohort: np.ndarray, seed: int) -> torch.Tensor:
    """Returns the sum of the clients' updates, each clipped if the work is private."""
    work, count, n = self.work, len(cohort), self.work['examples']
    params, start = {}, 0
    for name, p in zip(self.names, self.params, strict=True):
      params[name] = (
        self.flat[start : start + p.numel()].view(p.shape).repeat(count, *[1] * p.dim())
      )
      start += p.numel()
    first = torch.as_tensor(cohort)[:, None] * n
    rows = self.order[(first + torch.arange(n)) % len(self.order)].to(self.device)
    for epoch in range(work['epochs']):
      torch.manual_seed(seed * 1000 + epoch)
      places = torch.rand(count, n, device=self.device).argsort(1)
      for part in rows.gather(1, places).split(work['batch_size'], 1):
        x, y = self.batch(part.reshape(-1))
        x, y = (v.reshape(*part.shape, *v.shape[1:]) for v in (x, y))
        for name, g in self.gradients(params, x, y).items():
          params[name].sub_(g, alpha=work['learning_rate'])
    updates = self.flat - torch.cat([params[name].reshape(count, -1) for name in self.names], 1)
    if work['privacy']:
      norms = updates.norm(dim=1, keepdim=True).clamp(min=1e-12)
      updates.mul_(torch.clamp(work['privacy'][0] / norms, max=1.0))
    return updates.sum(0)


def stacks(work: Any) -> bool:
  """Returns whether `Stacked` does a work: plain steps of SGD, without residuals or an LSTM."""
  return not (work.dp_sgd or work.feedback or work.momentum or work.model == 'char_lstm')


def seconds(kind: type[Loop], folder: pathlib.Path, device: str, budget: float) -> dict[str, Any]:
  """Returns the figures of a work: of rounds for so many seconds after the first, one at least."""
  trainer = kind(folder, device)
  first = trainer.round(0)
  times: list[float] = []
  began = time.perf_counter()
  while not times or (time.perf_counter() - began < budget and len(times) < 50):
    times.append(trainer.round(1 + len(times)))
  return {
    'median_s': round(float(np.median(times)), 5),
    'rounds': len(times),
    'first_round_s': round(first, 3),
    'finite': bool(trainer.flat.isfinite().all()),
  }
