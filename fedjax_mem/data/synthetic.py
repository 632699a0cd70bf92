"""FedProx's synthetic(alpha, beta): clients that differ in their model and in their inputs.

For client k, as in the published code: u_k ~ N(0, alpha), W_k [60, 10] and b_k [10] ~ N(u_k, 1),
y = argmax(W_k^T x + b_k); B_k ~ N(0, beta), v_k [60] ~ N(B_k, 1), x ~ N(v_k, diag(j^-1.2)).
alpha and beta are standard deviations there (the paper's notation suggests variances). Sizes are
int(lognormal(4, 2)) + 50; the first 90% of a client's examples are for training, the rest for
testing. The iid variant draws one W, b ~ N(0, 1) for all clients, and v_k = 0. u_k is one number,
so it shifts all logits of an example equally: alpha is kept to match the published code, but
changes no label.

Reference: Li et al. (2020), Federated optimization in heterogeneous networks, arXiv 1812.06127,
section 5.1 and appendix C.1.
"""

import numpy as np

from fedjax_mem.core import validate
from fedjax_mem.data.preprocess import Inputs
from fedjax_mem.data.table import Table

_DIM = 60
_CLASSES = 10
_TRAIN_SHARE = 0.9


def load_synthetic(
  *,
  alpha: float = 1.0,
  beta: float = 1.0,
  iid: bool = False,
  num_clients: int = 30,
  seed: int = 0,
) -> Table:
  """Returns synthetic(alpha, beta), whose examples come with clients.

  Args:
    alpha: standard deviation over clients of the mean of their models, >= 0.
    beta: standard deviation over clients of the mean of their input means, >= 0.
    iid: whether all clients share one model and one distribution of inputs.
    num_clients: N; the paper has 30.
    seed: seed of all draws.

  Raises:
    ValueError: a negative alpha or beta, or no client.
  """
  validate.non_negative(alpha=alpha)
  validate.non_negative(beta=beta)
  validate.integer(num_clients=num_clients)
  rng = np.random.default_rng(validate.integer(0, seed=seed))
  sizes = rng.lognormal(4, 2, num_clients).astype(np.int64) + 50
  model_mean = np.zeros(num_clients) if iid else rng.normal(0, alpha, num_clients)
  input_mean = rng.normal(0, beta, num_clients)
  stddev = np.arange(1, _DIM + 1) ** -0.6  # the variance of feature j is j^-1.2
  shared = rng.normal(0, 1, (_DIM + 1, _CLASSES))
  train: list[tuple[np.ndarray, np.ndarray]] = []
  test: list[tuple[np.ndarray, np.ndarray]] = []
  for k in range(num_clients):
    model = shared if iid else rng.normal(model_mean[k], 1, (_DIM + 1, _CLASSES))
    center = np.zeros(_DIM) if iid else rng.normal(input_mean[k], 1, _DIM)
    x = center + stddev * rng.standard_normal((sizes[k], _DIM))
    y = (x @ model[:-1] + model[-1]).argmax(-1)
    cut = int(_TRAIN_SHARE * sizes[k])
    train.append((x[:cut], y[:cut]))
    test.append((x[cut:], y[cut:]))
  return Table(
    name='synthetic_iid' if iid else f'synthetic({alpha}, {beta})',
    arrays=_arrays(train),
    test=_arrays(test),
    num_classes=_CLASSES,
    input_shape=(_DIM,),
    preprocess=Inputs((_DIM,)),
    client_ids=_owners(train),
    clients=tuple(f'f_{k:05d}' for k in range(num_clients)),
    test_client_ids=_owners(test),
  )


def _arrays(parts: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
  return {
    'x': np.concatenate([x for x, _ in parts]).astype(np.float32),
    'y': np.concatenate([y for _, y in parts]).astype(np.int32),
  }


def _owners(parts: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
  return np.repeat(np.arange(len(parts), dtype=np.int32), [len(y) for _, y in parts])
