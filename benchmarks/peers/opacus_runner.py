"""The work D1 in Opacus 1.6.0, on PyTorch: its per-example gradients, clip and noise.

    pip install torch==2.13.0 opacus==1.6.0
    python -m benchmarks.peers.opacus_runner FOLDER

All else is `benchmarks/peers/torch_loop.py`: the model, the processes, the lines on standard input.
"""

import numpy as np
import opacus
import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer

from benchmarks.peers import torch_loop


class Trainer(torch_loop.Trainer):
  """Trains clients by Opacus's optimizer, on Poisson samples of their examples."""

  def prepare(self) -> None:
    """Wraps the model, whose parameters stay where they are."""
    if not self.work.get('dp_sgd'):
      raise SystemExit(f'the work of this peer is D1, got the model {self.work["model"]!r} in SGD.')
    self.wrapped = GradSampleModule(self.model, batch_first=True, loss_reduction='mean')

  def private_steps(self, rows: torch.Tensor, rng: np.random.Generator) -> None:
    """Takes a client's local steps."""
    work = self.work
    count, rate, clip, noise = work['dp_sgd']
    optimizer = DPOptimizer(
      torch.optim.SGD(self.params, work['learning_rate']),
      noise_multiplier=noise,
      max_grad_norm=clip,
      expected_batch_size=work['batch_size'],
      loss_reduction='mean',
    )
    for _ in range(count):
      # Never empty here: that has a probability of (2/3)**60.
      x, y = self.batch(rows[torch.from_numpy(rng.random(len(rows)) < rate)])
      optimizer.zero_grad(set_to_none=True)
      self.loss(self.wrapped(x), y).backward()
      optimizer.step()


if __name__ == '__main__':
  torch_loop.main(Trainer, opacus=opacus.__version__)
