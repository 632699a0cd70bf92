"""The works W1 to W3 and M1 in pfl-research 0.6.0, on PyTorch, by its federated averaging.

It needs an older dp-accounting, so an environment of its own (Python 3.11):

    pip install pfl==0.6.0 torch==2.13.0 'dp-accounting<0.6'
    python -m benchmarks.peers.pfl_runner FOLDER

FOLDER and the lines on standard input are those of `benchmarks/peers/torch_loop.py`, and so is the
model. Images are scaled once, ahead, and W2 is pfl's own Gaussian mechanism, applied centrally.
The best setting seen for W3 was 2 processes with 1 thread each, by pfl's own distribution over
workers; one process with 2 threads falls behind tenfold as soon as another program takes a core.
"""

import argparse
import functools
import json
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints, WeightByUser
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from pfl.privacy import CentrallyAppliedPrivacyMechanism, GaussianMechanism
from pfl.version import __version__
from torch.nn import functional

from benchmarks.peers.torch_models import MODELS


class Classifier(torch.nn.Module):
  """A model with the loss and the metrics that pfl asks for."""

  def __init__(self, net: torch.nn.Module):
    super().__init__()
    self.net = net

  def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Returns the mean loss of a batch."""
    return functional.cross_entropy(self.net(x), y)

  @torch.no_grad()
  def metrics(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, Weighted]:
    """Returns the accuracy, a sum and its weight."""
    return {'accuracy': Weighted(int((self.net(x).argmax(1) == y).sum()), len(y))}


class Clock(TrainingProcessCallback):
  """Notes when each round ends."""

  def __init__(self):
    self.ends = [time.perf_counter()]

  def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
    """Takes the time."""
    self.ends.append(time.perf_counter())
    return False, Metrics()


def load(folder: pathlib.Path, prefix: str = '') -> tuple[torch.Tensor, torch.Tensor]:
  """Returns images [T, 1, 28, 28] in [0, 1] and labels [T]."""
  x = torch.from_numpy(np.load(folder / f'{prefix}x.npy')).reshape(-1, 1, 28, 28)
  y = torch.from_numpy(np.load(folder / f'{prefix}y.npy').astype(np.int64))
  return x.to(torch.float32).div_(255), y


def population(work: dict[str, Any], folder: pathlib.Path) -> FederatedDataset:
  """Returns the clients: consecutive blocks of a permutation, repeated beyond its end.

  A cohort is drawn without replacement, which pfl's own samplers do not; a client's examples are
  shuffled as it is drawn, as its batches are then taken in order.
  """
  x, y = load(folder)
  order = torch.from_numpy(np.random.default_rng(0).permutation(len(y)))
  n, rng = work['examples'], np.random.default_rng(1)

  def dataset(client: int) -> Dataset:
    rows = order[torch.from_numpy(client * n + rng.permutation(n)) % len(order)]
    return Dataset((x[rows], y[rows]), user_id=str(client))

  def cohorts() -> Iterator[int]:
    draw = np.random.default_rng(2)
    while True:
      yield from draw.choice(work['num_clients'], work['cohort'], replace=False).tolist()

  clients = cohorts()
  return FederatedDataset(dataset, lambda: next(clients))


class Simulation:
  """The work as pfl runs it, some rounds at a time."""

  def __init__(self, work: dict[str, Any], folder: pathlib.Path):
    np.random.seed(0)  # pfl seeds its backend and its algorithm from NumPy's state
    torch.manual_seed(0)
    self._work, self._done = work, 0
    net = Classifier(MODELS[work['model']]())
    self._model = PyTorchModel(
      net,
      functools.partial(torch.optim.SGD, momentum=work['momentum']),
      torch.optim.SGD(net.parameters(), lr=1.0),
    )
    steps: list[Any] = [WeightByDatapoints()]
    if work['privacy']:
      mechanism = CentrallyAppliedPrivacyMechanism(GaussianMechanism(*work['privacy']))
      steps = [WeightByUser(), mechanism]
    train = population(work, folder)
    self._backend = SimulatedBackend(train, train, steps)
    self._algorithm = FederatedAveraging()
    self._how = NNTrainHyperParams(
      local_batch_size=work['batch_size'],
      local_num_epochs=work['epochs'],
      local_learning_rate=work['learning_rate'],
    )

  def run(self, rounds: int) -> list[float]:
    """Runs rounds and returns their seconds; only the very first also evaluates the clients."""
    clock = Clock()
    self._done += rounds
    self._algorithm.run(
      NNAlgorithmParams(
        central_num_iterations=self._done,
        evaluation_frequency=1 << 31,
        train_cohort_size=self._work['cohort'],
        val_cohort_size=None,
      ),
      self._backend,
      self._model,
      self._how,
      callbacks=[clock],
      send_metrics_to_platform=False,
    )
    return np.diff(clock.ends).tolist()

  def accuracy(self, test: Dataset) -> float:
    """Returns the accuracy on a test set."""
    metrics = self._model.evaluate(test, eval_params=NNEvalHyperParams(local_batch_size=500))
    return float(next(iter(metrics.to_simple_dict().values())))


def relay(processes: int) -> None:
  """Starts one rank of pfl a process, and hands each of them every line."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  addresses = {'PFL_WORKER_ADDRESSES': ','.join([address] * processes)}
  ranks = [
    subprocess.Popen(
      [sys.executable, '-m', 'benchmarks.peers.pfl_runner', *sys.argv[1:]],
      env={**os.environ, **addresses, 'PFL_WORKER_RANK': str(rank)},
      stdin=subprocess.PIPE,
      stdout=None if rank == 0 else subprocess.DEVNULL,
      text=True,
    )
    for rank in range(processes)
  ]
  sys.stdout.close()  # only rank 0 answers, and its end is seen
  pipes = [rank.stdin for rank in ranks if rank.stdin]
  for line in sys.stdin:
    for pipe in pipes:
      pipe.write(line)
      pipe.flush()
  for pipe in pipes:
    pipe.close()
  for rank in ranks:
    rank.wait()


def main() -> None:
  """Serves rounds on standard input and output."""
  parser = argparse.ArgumentParser()
  parser.add_argument('folder', type=pathlib.Path)
  parser.add_argument('--processes', type=int, default=2)
  parser.add_argument('--threads', type=int, default=1)
  args = parser.parse_args()
  work = json.loads((args.folder / 'work.json').read_text())
  models = ('cnn', 'logistic', 'mlp')
  if work['model'] not in models or (more := {'data', 'dp_sgd', 'feedback'} & set(work)):
    what = f'the model {work["model"]!r}' if work['model'] not in models else sorted(more)
    raise SystemExit(f'the works of this peer are W1 to W3 and M1, got {what}.')
  if args.processes > 1 and 'PFL_WORKER_RANK' not in os.environ:
    relay(args.processes)
    return
  torch.set_num_threads(args.threads)
  simulation = Simulation(work, args.folder)
  test = Dataset(load(args.folder, 'test_'))
  print(json.dumps({'pfl': __version__, 'torch': torch.__version__}), flush=True)
  for line in sys.stdin:
    if line.strip() == 'accuracy':
      print(json.dumps({'accuracy': simulation.accuracy(test)}), flush=True)
      continue
    print(json.dumps({'seconds': simulation.run(int(line))}), flush=True)


if __name__ == '__main__':
  main()
