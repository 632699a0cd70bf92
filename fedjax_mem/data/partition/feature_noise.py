"""Noise on the inputs that grows from client to client."""

import numpy as np

from fedjax_mem.core import validate
from fedjax_mem.data.partition._base import Partition
from fedjax_mem.data.partition.iid import iid


def feature_noise(
  labels: np.ndarray, num_clients: int, rng: np.random.Generator, *, sigma: float
) -> Partition:
  """Returns an iid partition with noise of variance sigma i / N on the inputs of client i = 1 … N.

  The noise is Gaussian. It is drawn once, when the data are loaded, from the seed and the client,
  and added to the preprocessed inputs (images in [0, 1]); an example has the same noise in all
  rounds. Test inputs get none.

  Reference: Li, Diao, Chen, He (2022), NIID-Bench, arXiv 2102.02079, section 4.2.

  Args:
    labels: [T]; only their number matters.
    num_clients: N.
    rng: source of the permutation.
    sigma: variance of the noise of client N, >= 0.
  """
  validate.non_negative(sigma=sigma)
  noise = np.sqrt(sigma * np.arange(1, num_clients + 1) / num_clients)
  return iid(labels, num_clients, rng)._replace(noise=noise)
