"""Differential privacy as objects: clip and noise of one update, and the budget spent."""

import functools
import secrets
import threading
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_mem import account, engine, mechanisms
from fedjax_mem.account import Guarantee, calibrate
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
from fedjax_mem.federated.config import PrivacyConfig
from fedjax_mem.federated.model import floats
from fedjax_mem.kernels.random.noise import LARGEST_SIGMA
from fedjax_mem.stages.privacy import local, local_discrete, local_laplace

_LEVELS = 1024
_POPULATION = 10**9  # the accountant takes a rate as an expected cohort of a population


class PrivacyBudgetExceeded(RuntimeError):
  """The budget does not cover a release; nothing was released."""


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
def _guarantee(config: PrivacyConfig, noise: float, releases: int) -> Guarantee:
  how: dict[str, Any] = {
    'rounds': max(1, releases),
    'delta': config.delta,
    'bound': _bound(config, noise),
  }
  return account.claim(None, _mechanism(config, noise), **how).guarantee(releases, config.delta)


@functools.lru_cache(maxsize=64)
def _applier(config: PrivacyConfig, noise: float) -> Callable[..., Any]:
  """Returns the compiled client sides of the layers: (key, gradients) -> private gradients."""
  made = Round(layers(config, noise))

  def apply(key: jax.Array, gradients: Any) -> Any:
    return engine.message_pass(made, key, Message(gradients, jnp.float32(1), {})).update

  return jax.jit(apply)


class DifferentialPrivacy:
  """Clips whole updates and adds noise to them, and accounts for the privacy spent.

  This is local privacy without sampling: neighbours differ by the replacement of one update by any
  other. The level of `get_privacy_spent()` is Strong, Moderate, Weak or Minimal.

  >>> dp = DifferentialPrivacy(PrivacyConfig(epsilon=1.0, delta=1e-5), seed=0)
  >>> sorted(dp.apply({'w': jnp.ones(3), 'b': jnp.zeros(2)}))
  ['b', 'w']
  >>> spent = dp.get_privacy_spent()
  >>> spent.epsilon <= 1.0, spent.delta, spent.level
  (True, 1e-05, 'Strong')

  Args:
    config: the budget and the mechanism.
    releases: number of releases that the noise is computed for, if the config has no
      `noise_multiplier`.
    seed: seed of the noise; by default drawn from the operating system. JAX's generator is not
      cryptographic: this simulates the mechanism.
  """

  def __init__(self, config: PrivacyConfig, *, releases: int = 1, seed: int | None = None):
    if not isinstance(config, PrivacyConfig):
      raise ValueError(f'config must be a PrivacyConfig, got {config!r}.')
    self.config = config
    self._planned = validate.integer(releases=releases)
    self._seed = secrets.randbits(32) if seed is None else seed
    self._done = 0
    self._lock = threading.Lock()

  @property
  def noise_multiplier(self) -> float:
    """Standard deviation (Laplace: scale) of the noise over the clip norm."""
    return multiplier(self.config, self._planned)

  @property
  def releases(self) -> int:
    """Number of releases so far."""
    return self._done

  def plan(self, releases: int) -> None:
    """Plans the noise for so many releases; after the first release this has no effect."""
    with self._lock:
      if self._done == 0:
        self._planned = validate.integer(releases=releases)

  def check(self) -> None:
    """Raises `PrivacyBudgetExceeded` if another release would exceed the budget."""
    after = _guarantee(self.config, self.noise_multiplier, self._done + 1).epsilon
    if after > self.config.epsilon:
      raise PrivacyBudgetExceeded(
        f'epsilon must be at most {self.config.epsilon:g} after every release, got {after:.4g} '
        f'after release {self._done + 1}: nothing was released.'
      )

  def charge(self) -> int:
    """Counts a release before it is made, and returns the number of releases before it.

    Raises:
      PrivacyBudgetExceeded: the budget does not cover it.
    """
    with self._lock:
      self.check()
      self._done += 1
      return self._done - 1

  def apply(self, gradients: Any) -> Any:
    """Returns the gradients clipped as a whole and noised, a pytree of the same shapes, float32.

    Raises:
      ValueError: a value is not a finite float; nothing is spent.
      PrivacyBudgetExceeded: the budget does not cover another release.
    """
    gradients = floats(gradients=gradients)
    number = self.charge()
    base = keys.layer_key(keys.seed_key(self._seed), number, 'local')
    key = keys.role_key(base, 'client', 0)
    return _applier(self.config, self.noise_multiplier)(key, gradients)

  def get_privacy_spent(self) -> Guarantee:
    """Returns the guarantee so far: `.epsilon`, `.delta`, `.level` and what they depend on."""
    return _guarantee(self.config, self.noise_multiplier, self._done)


class PrivacyAccountant:
  """Computes epsilon of steps of Gaussian noise on Poisson samples.

  Steps may differ in noise and rate. They are composed by Rényi differential privacy; neighbours
  differ by one client more or less.

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

  def step(self, noise_multiplier: float, sample_rate: float) -> None:
    """Counts one step.

    Args:
      noise_multiplier: standard deviation of the noise on the sum, over the clip norm, > 0.
      sample_rate: inclusion probability of a client in the step, in (0, 1].
    """
    validate.positive(noise_multiplier=noise_multiplier)
    validate.probability(sample_rate=sample_rate)
    step = (float(noise_multiplier), float(sample_rate))
    self._steps[step] = self._steps.get(step, 0) + 1

  @property
  def epsilon(self) -> float:
    """Epsilon of all steps so far, at `target_delta`."""
    if not self._steps:
      return 0.0
    if len(self._steps) == 1:
      (((noise, rate), count),) = self._steps.items()
      sampling = Draws('poisson', _POPULATION, rate * _POPULATION, _POPULATION)
      made = account.Claim(sampling, mechanisms.Gaussian(noise), 'add_or_remove_one', 'rdp')
      return made.epsilon(count, self.target_delta)
    return self._composed()

  def _composed(self) -> float:
    """Returns epsilon of steps of several kinds."""
    import dp_accounting
    from dp_accounting import rdp

    accountant = rdp.RdpAccountant()
    for (noise, rate), count in self._steps.items():
      gaussian = dp_accounting.GaussianDpEvent(noise)
      accountant.compose(dp_accounting.PoissonSampledDpEvent(rate, gaussian), count)
    return float(accountant.get_epsilon(self.target_delta))

  @property
  def delta(self) -> float:
    """The target delta."""
    return self.target_delta

  def is_budget_exhausted(self) -> bool:
    """Returns whether epsilon has reached the budget."""
    return self.epsilon >= self.target_epsilon


class ClientsAccountant:
  """The clients' local privacy, as the server reports it: that of the client that spent most."""

  def __init__(self, spenders: Callable[[], Iterable[DifferentialPrivacy]]):
    self._spenders = spenders

  def get_privacy_spent(self) -> Guarantee | None:
    """Returns the guarantee of the client that spent most; None if some client adds no noise."""
    spent = [x.get_privacy_spent() for x in self._spenders()]
    return max(spent, key=lambda x: x.epsilon) if spent else None

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
