"""The works as a plain, careful PyTorch loop: one client after another, in processes.

Needs torch==2.13.0 and NumPy, nothing else, so any interpreter that has them can run it, from the
root of the repository:

    python -m benchmarks.peers.torch_loop FOLDER

FOLDER and the lines on standard input are those of `benchmarks/peers/__init__.py`, written by
`python -m benchmarks.rounds --against torch-loop`. The answer to 'accuracy' has the loss, too.
The best setting seen for W1 and W3 was 2 processes with 1 thread each: with 2 threads in one
process, each small operation is split in vain.
"""

import argparse
import json
import pathlib
import sys
import time

import numpy as np
import torch
from torch import multiprocessing, nn

from benchmarks.peers import torch_models, torch_private


class Trainer:
  """One process's model and data: trains clients and sums their weighted updates."""

  def __init__(self, folder: pathlib.Path, threads: int):
    torch.set_num_threads(threads)
    self.work = json.loads((folder / 'work.json').read_text())
    self.x = torch.from_numpy(np.load(folder / 'x.npy'))
    self.y = torch.from_numpy(np.load(folder / 'y.npy').astype(np.int64))
    self.order = torch.from_numpy(np.random.default_rng(0).permutation(len(self.y)))
    torch.manual_seed(0)
    self.model = torch_models.MODELS[self.work['model']]()
    self.params = [p for p in self.model.parameters() if p.requires_grad]
    self.loss = nn.CrossEntropyLoss()
    self.prepare()

  def prepare(self) -> None:
    """Makes what steps of DP-SGD need."""
    if self.work.get('dp_sgd'):
      self.private = torch_private.PerExample(self.model, self.work)

  def batch(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns inputs and labels."""
    return torch_models.inputs(self.work, self.x[rows]), self.y[rows]

  def load(self, flat: torch.Tensor) -> None:
    """Copies a flat vector of parameters into the model."""
    start = 0
    with torch.no_grad():
      for p in self.params:
        p.copy_(flat[start : start + p.numel()].view_as(p))
        start += p.numel()

  def steps(self, rows: torch.Tensor, rng: np.random.Generator) -> None:
    """Takes a client's local steps of SGD; `rows` are its examples."""
    work = self.work
    optimizer = torch.optim.SGD(self.params, work['learning_rate'], work['momentum'])
    for _ in range(work['epochs']):
      shuffled = rows[torch.from_numpy(rng.permutation(len(rows)))]
      for part in shuffled.split(work['batch_size']):
        x, y = self.batch(part)
        optimizer.zero_grad(set_to_none=True)
        self.loss(self.model(x), y).backward()
        optimizer.step()

  def private_steps(self, rows: torch.Tensor, rng: np.random.Generator) -> None:
    """Takes a client's local steps of DP-SGD, on Poisson samples of its examples."""
    count, rate, _, _ = self.work['dp_sgd']
    for _ in range(count):
      self.private.step(*self.batch(rows[torch.from_numpy(rng.random(len(rows)) < rate)]))

  def train(self, flat: torch.Tensor, client: int, seed: int) -> torch.Tensor:
    """Returns the flat update of a client, server - client, clipped if the work is private."""
    self.load(flat)
    work, rng = self.work, np.random.default_rng([seed, client])
    n = work['examples']
    rows = self.order[(client * n + torch.arange(n)) % len(self.order)]
    if work.get('dp_sgd'):
      torch.manual_seed(int(rng.integers(1 << 62)))
      self.private_steps(rows, rng)
    else:
      self.steps(rows, rng)
    update = flat - torch.cat([p.detach().reshape(-1) for p in self.params])
    if work['privacy']:
      clip = work['privacy'][0]
      update.mul_(torch.clamp(clip / update.norm().clamp(min=1e-12), max=1.0))
    return update

  def score(self, flat: torch.Tensor, folder: pathlib.Path) -> dict[str, float]:
    """Returns the accuracy and the loss on the test set."""
    self.load(flat)
    x = torch.from_numpy(np.load(folder / 'test_x.npy'))
    y = torch.from_numpy(np.load(folder / 'test_y.npy').astype(np.int64))
    with torch.no_grad():
      parts = [self.model(torch_models.inputs(self.work, part)) for part in x.split(100)]
    logits = torch.cat(parts)
    accuracy = (logits.argmax(1) == y).float().mean()
    return {'accuracy': float(accuracy), 'loss': float(self.loss(logits, y))}


def keep(total: torch.Tensor, update: torch.Tensor, residual: torch.Tensor, share: float) -> None:
  """Adds the largest values of update + residual to `total`; the rest is the new residual."""
  residual.add_(update)
  count = max(1, round(share * len(residual)))
  places = torch.topk(residual.abs(), count, sorted=False).indices
  total.index_add_(0, places, residual[places])
  residual[places] = 0


def _worker(kind, folder, threads, flat, total, residuals, inbox, outbox) -> None:
  trainer = kind(folder, threads)
  share = trainer.work.get('feedback')
  outbox.put('ready')
  while True:
    clients, seed = inbox.get()
    if clients is None:
      return
    total.zero_()
    for client in clients:
      update = trainer.train(flat, client, seed)
      # Every client of a work holds as many examples: the weighted mean is a plain one.
      if share:
        keep(total, update, residuals[client], share)
      else:
        total.add_(update)
    outbox.put('done')


def main(kind: type[Trainer] = Trainer, **versions: str) -> None:
  """Serves rounds on standard input and output, by trainers of a kind."""
  parser = argparse.ArgumentParser()
  parser.add_argument('folder', type=pathlib.Path)
  parser.add_argument('--processes', type=int, default=2)
  parser.add_argument('--threads', type=int, default=1)
  args = parser.parse_args()
  own = kind(args.folder, args.threads)
  work = own.work
  flat = torch.cat([p.detach().reshape(-1) for p in own.params]).share_memory_()
  context = multiprocessing.get_context('spawn')
  clients = work['num_clients'] if work.get('feedback') else 0
  residuals = torch.zeros(clients, len(flat)).share_memory_()  # pages are there once they are used
  totals = [torch.zeros_like(flat).share_memory_() for _ in range(args.processes)]
  inboxes = [context.Queue() for _ in totals]
  outbox = context.Queue()
  workers = [
    context.Process(
      target=_worker,
      args=(kind, args.folder, args.threads, flat, total, residuals, inbox, outbox),
      daemon=True,
    )
    for total, inbox in zip(totals, inboxes, strict=True)
  ]
  for worker in workers:
    worker.start()
  for _ in workers:
    outbox.get()
  done = 0
  print(json.dumps({'torch': torch.__version__, **versions}), flush=True)
  for line in sys.stdin:
    if line.strip() == 'accuracy':
      print(json.dumps(own.score(flat, args.folder)), flush=True)
      continue
    seconds = []
    for _ in range(int(line)):
      began = time.perf_counter()
      cohort = np.random.default_rng([1, done]).choice(
        work['num_clients'], work['cohort'], replace=False
      )
      for inbox, part in zip(inboxes, np.array_split(cohort, args.processes), strict=True):
        inbox.put((part.tolist(), done))
      for _ in workers:
        outbox.get()
      total = torch.stack(totals).sum(0)
      if work['privacy']:
        clip, noise = work['privacy']
        total.add_(torch.randn_like(total), alpha=clip * noise)
      flat.sub_(total, alpha=1 / work['cohort'])
      seconds.append(time.perf_counter() - began)
      done += 1
    print(json.dumps({'seconds': seconds}), flush=True)
  for inbox in inboxes:
    inbox.put((None, 0))


if __name__ == '__main__':
  main()
