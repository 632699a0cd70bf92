"""Differential privacy as objects: clip and noise of one update, and the budget spent."""

import functools
import threading
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem import account, engine, mechanisms
from fedjax_mem.account import Claim, Guarantee, calibrate
from fedjax_mem.core import (
  Bound,
  Draws,
  Layer,
  Mechanism,
  Message,
  Noises,
  Round,
  keys,
  validate,
)
from fedjax_mem.federated.budget import Budget, PrivacyBudgetExceeded
from fedjax_mem.federated.config import PrivacyConfig
from fedjax_mem.federated.model import floats
from fedjax_mem.federated.secret import NoiseSecret
from fedjax_mem.kernels.random.noise import LARGEST_SIGMA
from fedjax_mem.stages.privacy import local, local_discrete, local_laplace

_LEVELS = 1024
_POPULATION = 10**9  # the accountant takes a rate as an expected cohort of a population


@functools.lru_cache(maxsize=256)
def multiplier(config: PrivacyConfig, releases: int) -> float:
  """Returns the noise multiplier: the config's, or the least that keeps the budget."""
  if config.noise_multiplier is not None:
    return float(config.noise_multiplier)
  how = _mechanism(config, 1.0)
  found = calibrate.noise_multiplier(
    config.epsilon, config.delta, None, releases, how, bound=_bound(config, 1.0)
  )
  return float(found.mechanism.noise_multiplier)


def _levels(noise: float) -> int:
  """Returns the steps of the quantisation grid per clip norm: fewer if the noise is large."""
  return max(1, min(_LEVELS, int(LARGEST_SIGMA / noise)))


def _mechanism(config: PrivacyConfig, noise: float) -> Mechanism:
  return mechanisms.find(config.mechanism)(noise)


def layers(config: PrivacyConfig, noise: float) -> tuple[Layer, ...]:
  """Returns the layers of clip and noise that a config describes."""
  kind, clip = mechanisms.find(config.mechanism), config.max_grad_norm
  if kind.integers:
    return local_discrete(clip, noise, mechanism=kind, levels=_levels(noise))
  if 'l1' in kind.norm:
    return local_laplace(clip, noise, mechanism=kind)
  return local(clip, noise, mechanism=kind)


def _bound(config: PrivacyConfig, noise: float) -> Bound:
  """Returns the bound that the noise of a config is scaled to."""
  made = Round(layers(config, noise))
  layer, side, _ = made.having(Noises)[0]
  return made.bound(layer, side, {})


@functools.lru_cache(maxsize=256)
def _claim(config: PrivacyConfig, noise: float, releases: int, notes: tuple[str, ...]) -> Claim:
  how: dict[str, Any] = {'rounds': releases, 'delta': config.delta, 'notes': notes}
  return account.claim(None, _mechanism(config, noise), bound=_bound(config, noise), **how)


@functools.lru_cache(maxsize=64)
def _applier(config: PrivacyConfig, noise: float) -> Callable[..., Any]:
  """Returns the compiled client sides of the layers: (root, gradients) -> private gradients."""
  made = Round(layers(config, noise))

  def apply(root: jax.Array, gradients: Any) -> Any:
    message = Message(gradients, jnp.float32(1), {})
    return engine.message_pass(made, keys.root_key(root), message).update

  return keys.jit(apply)


class DifferentialPrivacy:
  """Clips whole updates and adds noise to them, and accounts for the privacy spent.

  This is local privacy without sampling: neighbours differ by the replacement of one update by any
  other. The level of `get_privacy_spent()` is Strong, Moderate, Weak or Minimal.

  The noise comes from a secret of the object's own, drawn from the operating system; each release
  has a root of its own, of 64 bits. JAX's generator is not cryptographic: this simulates the
  mechanism.

  >>> dp = DifferentialPrivacy(PrivacyConfig(epsilon=1.0, delta=1e-5))
  >>> sorted(dp.apply({'w': jnp.ones(3), 'b': jnp.zeros(2)}))
  ['b', 'w']
  >>> spent = dp.get_privacy_spent()
  >>> spent.epsilon <= 1.0, spent.delta, spent.level
  (True, 1e-05, 'Strong')

  Args:
    config: the budget and the mechanism.
    releases: number of releases that the noise is computed for, if the config has no
      `noise_multiplier`.
    noise_seed: seed of the noise, in [0, 2**32), for experiments that are to be repeated: it hides
      nothing from who knows the seed, and the guarantee says so. None: a secret.
    notes: what else the guarantee has to say.

  Raises:
    ValueError: an argument is out of range or has a wrong type.
  """

  def __init__(
    self,
    config: PrivacyConfig,
    *,
    releases: int = 1,
    noise_seed: int | None = None,
    notes: tuple[str, ...] = (),
  ):
    if not isinstance(config, PrivacyConfig):
      raise ValueError(f'config must be a PrivacyConfig, got {config!r}.')
    self.config = config
    self._planned = validate.integer(releases=releases)
    self._secret = NoiseSecret(noise_seed)
    self._notes = (*self._secret.notes, *notes)
    self._budget = Budget(config.epsilon, config.delta)
    self._lock = threading.Lock()

  @property
  def noise_multiplier(self) -> float:
    """Standard deviation (Laplace: scale) of the noise over the clip norm."""
    return multiplier(self.config, self._planned)

  @property
  def releases(self) -> int:
    """Number of releases so far."""
    return self._budget.releases

  def plan(self, releases: int) -> None:
    """Plans the noise for so many releases; after the first release this has no effect."""
    with self._lock:
      if self.releases == 0:
        self._planned = validate.integer(releases=releases)

  @property
  def claim(self) -> Claim:
    """What is claimed of the releases of `apply` and of a client's updates."""
    return _claim(self.config, self.noise_multiplier, self._planned, self._notes)

  def check(self, claim: Claim | None = None, releases: int = 1) -> None:
    """Raises `PrivacyBudgetExceeded` if further releases would exceed the budget.

    Args:
      claim: of the releases; None: the object's own.
      releases: how many.
    """
    self._budget.check(claim or self.claim, self._planned, releases)

  def charge(self, claim: Claim | None = None, releases: int = 1) -> np.ndarray:
    """Charges releases before they are made, and returns a fresh root for their noise, uint32 [2].

    The arguments are those of `check`.

    Raises:
      PrivacyBudgetExceeded: the budget does not cover them; nothing is charged.
    """
    with self._lock:
      before = self._budget.charge(claim or self.claim, self._planned, releases)
      return self._secret.root(before)

  def apply(self, gradients: Any) -> Any:
    """Returns the gradients clipped as a whole and noised, a pytree of the same shapes, float32.

    Raises:
      ValueError: a value is not a finite float; nothing is spent.
      PrivacyBudgetExceeded: the budget does not cover another release.
    """
    gradients = floats(gradients=gradients)
    root = self.charge()
    return _applier(self.config, self.noise_multiplier)(root, gradients)

  def get_privacy_spent(self) -> Guarantee:
    """Returns the guarantee so far: `.epsilon`, `.delta`, `.level` and what they depend on."""
    return self._budget.spent(self.claim, self._planned)

  def __repr__(self) -> str:
    """Shows the budget and the number of releases, and no secret."""
    return f'DifferentialPrivacy({self.config!r}, releases={self.releases})'


class PrivacyAccountant:
  """Computes epsilon of steps of Gaussian noise on Poisson samples.

  Steps may differ in noise and rate. They are composed by Rényi differential privacy; neighbours
  differ by one client more or less. It counts what has been released and refuses nothing; a loop
  that ends when `is_budget_exhausted` says so keeps within the budget.

  >>> accountant = PrivacyAccountant(target_epsilon=5.0, target_delta=1e-5)
  >>> for _ in range(100):
  ...   accountant.step(1.2, 120 / 3383)
  >>> f'{accountant.epsilon:.2f}', accountant.is_budget_exhausted()
  ('1.99', False)

  Args:
    target_epsilon: the budget, > 0.
    target_delta: delta of the guarantee, in (0, 1).
  """

  def __init__(self, target_epsilon: float, target_delta: float):
    self.target_epsilon = validate.positive(target_epsilon=target_epsilon)
    self.target_delta = validate.open_fraction(target_delta=target_delta)
    self._steps: dict[tuple[float, float], int] = {}
    self._last: tuple[float, float] | None = None

  def step(self, noise_multiplier: float, sample_rate: float) -> None:
    """Counts one step.

    Args:
      noise_multiplier: standard deviation of the noise on the sum, over the clip norm, > 0.
      sample_rate: inclusion probability of a client in the step, in (0, 1].
    """
    validate.positive(noise_multiplier=noise_multiplier)
    validate.probability(sample_rate=sample_rate)
    step = self._last = (float(noise_multiplier), float(sample_rate))
    self._steps[step] = self._steps.get(step, 0) + 1

  @property
  def epsilon(self) -> float:
    """Epsilon of all steps so far, at `target_delta`."""
    return self._epsilon(self._steps)

  def _epsilon(self, steps: dict[tuple[float, float], int]) -> float:
    """Returns epsilon of steps: (noise multiplier, rate) -> how many."""
    if not steps:
      return 0.0
    if len(steps) == 1:
      (((noise, rate), count),) = steps.items()
      sampling = Draws('poisson', _POPULATION, rate * _POPULATION, _POPULATION)
      made = account.Claim(sampling, mechanisms.Gaussian(noise), 'add_or_remove_one', 'rdp')
      return made.epsilon(count, self.target_delta)
    return self._composed(steps)

  def _composed(self, steps: dict[tuple[float, float], int]) -> float:
    """Returns epsilon of steps of several kinds."""
    import dp_accounting
    from dp_accounting import rdp

    accountant = rdp.RdpAccountant()
    for (noise, rate), count in steps.items():
      gaussian = dp_accounting.GaussianDpEvent(noise)
      accountant.compose(dp_accounting.PoissonSampledDpEvent(rate, gaussian), count)
    return float(accountant.get_epsilon(self.target_delta))

  @property
  def delta(self) -> float:
    """The target delta."""
    return self.target_delta

  def is_budget_exhausted(self) -> bool:
    """Returns whether epsilon has reached the budget, or another step like the last exceeds it."""
    if self._last is None:
      return False
    more = {**self._steps, self._last: self._steps[self._last] + 1}
    return self.epsilon >= self.target_epsilon or self._epsilon(more) > self.target_epsilon


class ClientsAccountant:
  """The clients' local privacy, as the server reports it: that of the client that spent most."""

  def __init__(self, spenders: Callable[[], Iterable[DifferentialPrivacy]]):
    self._spenders = spenders

  def get_privacy_spent(self) -> Guarantee | None:
    """Returns the guarantee of the client that spent most; None if some client adds no noise."""
    spent = [x.get_privacy_spent() for x in self._spenders()]
    notes = tuple(dict.fromkeys(note for x in spent for note in x.notes))
    return max(spent, key=lambda x: x.epsilon)._replace(notes=notes) if spent else None

  @property
  def epsilon(self) -> float:
    """Largest epsilon of the clients; infinite if some client adds no noise or there is none."""
    spent = self.get_privacy_spent()
    return float('inf') if spent is None else spent.epsilon

  def is_budget_exhausted(self) -> bool:
    """Returns whether some client's budget covers no further release."""
    for x in self._spenders():
      try:
        x.check()
      except PrivacyBudgetExceeded:
        return True
    return False
