"""The works as a plain, careful PyTorch loop: one client after another, in processes.

Needs torch==2.13.0 and NumPy, nothing else, so any interpreter that has them can run it:

    python benchmarks/peers/torch_loop.py FOLDER

FOLDER holds work.json, x.npy [T, ...] uint8, y.npy [T] and the test set, as written by
`python -m benchmarks.rounds --against torch-loop`. A line 'R' on standard input runs R rounds and
is answered by a JSON line with their seconds; the line 'accuracy' by one with the test accuracy.
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


def make_model(name: str) -> nn.Module:
  """Returns the model of a work, for x [B, 1, 28, 28]."""
  if name == 'logistic':
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
  if name == 'cnn':
    return nn.Sequential(
      nn.Conv2d(1, 32, 3),
      nn.ReLU(),
      nn.Conv2d(32, 64, 3),
      nn.ReLU(),
      nn.MaxPool2d(2),
      nn.Flatten(),
      nn.Linear(9216, 128),
      nn.ReLU(),
      nn.Linear(128, 10),
    )
  return nn.Sequential(
    nn.Conv2d(1, 6, 5),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Conv2d(6, 16, 5),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Linear(256, 120),
    nn.ReLU(),
    nn.Linear(120, 84),
    nn.ReLU(),
    nn.Linear(84, 10),
  )


class Trainer:
  """One process's model and data: trains clients and sums their weighted updates."""

  def __init__(self, folder: pathlib.Path, threads: int):
    torch.set_num_threads(threads)
    self.work = json.loads((folder / 'work.json').read_text())
    self.x = torch.from_numpy(np.load(folder / 'x.npy'))
    self.y = torch.from_numpy(np.load(folder / 'y.npy').astype(np.int64))
    self.order = torch.from_numpy(np.random.default_rng(0).permutation(len(self.y)))
    torch.manual_seed(0)
    self.model = make_model(self.work['model'])
    self.params = list(self.model.parameters())
    self.loss = nn.CrossEntropyLoss()

  def batch(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns inputs in [0, 1] and labels."""
    x = self.x[rows].reshape(-1, 1, 28, 28).to(torch.float32)
    return x.div_(255), self.y[rows]

  def load(self, flat: torch.Tensor) -> None:
    """Copies a flat vector of parameters into the model."""
    start = 0
    with torch.no_grad():
      for p in self.params:
        p.copy_(flat[start : start + p.numel()].view_as(p))
        start += p.numel()

  def train(self, flat: torch.Tensor, client: int, rng: np.random.Generator) -> torch.Tensor:
    """Returns the flat update of a client, server - client, clipped if the work is private."""
    self.load(flat)
    work = self.work
    n = work['examples']
    rows = self.order[(client * n + torch.arange(n)) % len(self.order)]
    optimizer = torch.optim.SGD(self.params, work['learning_rate'], work['momentum'])
    for _ in range(work['epochs']):
      shuffled = rows[torch.from_numpy(rng.permutation(n))]
      for part in shuffled.split(work['batch_size']):
        x, y = self.batch(part)
        optimizer.zero_grad(set_to_none=True)
        self.loss(self.model(x), y).backward()
        optimizer.step()
    update = flat - torch.cat([p.detach().reshape(-1) for p in self.params])
    if work['privacy']:
      clip = work['privacy'][0]
      update.mul_(torch.clamp(clip / update.norm().clamp(min=1e-12), max=1.0))
    return update

  def accuracy(self, flat: torch.Tensor, folder: pathlib.Path) -> float:
    """Returns the accuracy on the test set."""
    self.load(flat)
    x = torch.from_numpy(np.load(folder / 'test_x.npy')).reshape(-1, 1, 28, 28)
    y = torch.from_numpy(np.load(folder / 'test_y.npy').astype(np.int64))
    with torch.no_grad():
      parts = x.to(torch.float32).div_(255).split(500)
      guesses = torch.cat([self.model(part).argmax(1) for part in parts])
    return float((guesses == y).float().mean())


def _worker(folder, threads, flat, total, inbox, outbox) -> None:
  trainer = Trainer(folder, threads)
  outbox.put('ready')
  while True:
    clients, seed = inbox.get()
    if clients is None:
      return
    total.zero_()
    for client in clients:
      rng = np.random.default_rng([seed, client])
      # Every client of a work holds as many examples: the weighted mean is a plain one.
      total.add_(trainer.train(flat, client, rng))
    outbox.put('done')


def main() -> None:
  """Serves rounds on standard input and output."""
  parser = argparse.ArgumentParser()
  parser.add_argument('folder', type=pathlib.Path)
  parser.add_argument('--processes', type=int, default=2)
  parser.add_argument('--threads', type=int, default=1)
  args = parser.parse_args()
  own = Trainer(args.folder, args.threads)
  work = own.work
  flat = torch.cat([p.detach().reshape(-1) for p in own.params]).share_memory_()
  context = multiprocessing.get_context('spawn')
  totals = [torch.zeros_like(flat).share_memory_() for _ in range(args.processes)]
  inboxes = [context.Queue() for _ in totals]
  outbox = context.Queue()
  workers = [
    context.Process(
      target=_worker, args=(args.folder, args.threads, flat, total, inbox, outbox), daemon=True
    )
    for total, inbox in zip(totals, inboxes, strict=True)
  ]
  for worker in workers:
    worker.start()
  for _ in workers:
    outbox.get()
  done = 0
  print(json.dumps({'torch': torch.__version__}), flush=True)
  for line in sys.stdin:
    if line.strip() == 'accuracy':
      print(json.dumps({'accuracy': own.accuracy(flat, args.folder)}), flush=True)
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
