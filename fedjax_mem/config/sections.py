"""The sections of a configuration: frozen dataclasses that check themselves when they are made.

An `options` table may hold any keys: they become keyword arguments of the factory that the section
names. They are checked against the factory's signature when the round is built.
"""

import dataclasses
import re
from typing import Any, ClassVar

from fedjax_mem.config.typed import Section
from fedjax_mem.core import validate
from fedjax_mem.core.running import HANDLINGS
from fedjax_mem.optim import SERVER_OPTIMIZERS

DTYPES = ('float32', 'bfloat16')
SCHEDULES = ('constant', 'exponential', 'cosine', 'linear')


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSection(Section):
  """The data set, and its partition over the clients.

  Attributes:
    name: data set: 'digits', 'fashion_mnist', 'synthetic', or any TFDS name; 'csv', 'parquet',
      'npz', 'texts', 'images' or 'tfds' for your own files; 'given' for data that are given to
      `run`; or 'package.module:function'.
    partition: 'iid', 'blocks', 'dirichlet', 'flower_dirichlet', 'inner_dirichlet',
      'labels_per_client', 'quantity_skew', 'sizes', 'feature_noise', 'column' or 'natural'; None =
      'natural' if the examples come with clients, else 'iid'.
    num_clients: number of clients, N; None = as many as the data have (a natural partition, or one
      by 'column').
    alpha: parameter of 'quantity_skew' and the Dirichlet partitions, and of 'synthetic', >= 0; or
      an array of one for each client ('inner_dirichlet': for each label).
    labels_per_client: number of labels of a client, for the partition of that name.
    examples_per_client: number of examples of a client under 'blocks'; None = the data set's size
      divided by N.
    min_examples: least number of examples of a client, for partitions that draw this number.
    partition_seed: seed of the partition; None = the experiment's seed.
    validation: share of the training examples that the server keeps for validation, in [0, 1). They
      are drawn before the partition, from its seed. The sampler 'contribution' scores clients on
      them.
    options: further arguments of the data set or the partition.
  """

  section: ClassVar[str] = 'data'
  name: str
  partition: str | None = None
  num_clients: int | None = None
  alpha: float | list[Any] | None = None
  labels_per_client: int | None = None
  examples_per_client: int | None = None
  min_examples: int | None = None
  partition_seed: int | None = None
  validation: float = 0.0
  options: dict[str, Any] = dataclasses.field(default_factory=dict)

  def _check(self) -> None:
    self._named('name')
    if self.partition is not None:
      self._named('partition')
    self._counts('num_clients', 'labels_per_client', 'examples_per_client', 'min_examples')
    self._each(validate.seed, 'partition_seed')
    if isinstance(self.alpha, list):
      for i, value in enumerate(self.alpha):
        validate.non_negative(**{f'data.alpha[{i}]': value})
    else:
      self._each(validate.non_negative, 'alpha')
    self._each(validate.below_one, 'validation')


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSection(Section):
  """The model that is trained.

  Attributes:
    name: 'logistic', 'mlp', 'cnn', …, or 'package.module:factory'.
    options: keyword arguments of its factory.
    statistics: what becomes of running statistics of batch normalisation: 'refuse'; 'average':
      they are part of the update; or 'local': each client keeps its own. A factory takes it as its
      argument `statistics`.
    init: parameters to start from: a .safetensors or .msgpack file, an Orbax folder, or the folder
      of a finished run. None: they are drawn.
    init_hash: SHA-256 of the arrays of `init`, 64 hexadecimal digits; a run fills it in.
  """

  section: ClassVar[str] = 'model'
  name: str
  options: dict[str, Any] = dataclasses.field(default_factory=dict)
  statistics: str = 'refuse'
  init: str | None = None
  init_hash: str | None = None

  def _check(self) -> None:
    self._named('name')
    validate.one_of(HANDLINGS, **{'model.statistics': self.statistics})
    if self.init is not None and not self.init.strip():
      raise ValueError(f'model.init must be a path, got {self.init!r}.')
    if self.init_hash is not None and not re.fullmatch('[0-9a-f]{64}', self.init_hash):
      raise ValueError(f'model.init_hash must be 64 hexadecimal digits, got {self.init_hash!r}.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlgorithmSection(Section):
  """The algorithm: how clients train, and how the server steps.

  Attributes:
    name: 'fedavg', 'fedsgd', 'dp_sgd', 'fedprox', 'scaffold', 'fednova', 'feddyn', 'mime',
      'mime_lite' or 'package.module:factory'.
    options: keyword arguments of its factory.
  """

  section: ClassVar[str] = 'algorithm'
  name: str = 'fedavg'
  options: dict[str, Any] = dataclasses.field(default_factory=dict)

  def _check(self) -> None:
    self._named('name')


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClientSection(Section):
  """Local training of the clients.

  Attributes:
    epochs: passes over a client's examples in a round.
    batch_size: examples in a local step.
    optimizer: 'sgd' or 'package.module:factory'.
    learning_rate: step size in the first round, > 0.
    momentum: momentum of 'sgd', in [0, 1); it starts at zero in every round.
    weight_decay: factor of 'sgd', >= 0; times the parameters it is added to the gradient.
    learning_rate_schedule: learning rate of round r = 0, 1, …: 'constant'; 'exponential', the first
      one times decay_rate^(r / decay_rounds); 'cosine' or 'linear', which falls to `final_fraction`
      of the first one within `decay_rounds` rounds.
    decay_rate: factor of the schedule 'exponential', in (0, 1].
    decay_rounds: rounds in which 'exponential' decays by one `decay_rate` (None = 1), or in which
      'cosine' and 'linear' end (None = all rounds).
    final_fraction: last learning rate over the first for 'cosine' and 'linear', in [0, 1].
    dtype: 'bfloat16': forward and backward pass in 16 bits, while parameters, what the optimizer
      gets, updates and all of the server stay in float32; or 'float32'. Evaluation is in float32.
    remat: whether a step keeps few activations and computes the others again: equal results, more
      work, less memory for a deep model.
    accumulate: parts of a local step's batch that are processed one after another, >= 1: gradients
      equal up to rounding, in the memory of one part. Not for 'dp_sgd', which has `microbatch`, nor
      for running statistics.
  """

  section: ClassVar[str] = 'client'
  epochs: int = 1
  batch_size: int = 20
  optimizer: str = 'sgd'
  learning_rate: float = 0.1
  momentum: float = 0.0
  weight_decay: float = 0.0
  learning_rate_schedule: str = 'constant'
  decay_rate: float = 0.99
  decay_rounds: int | None = None
  final_fraction: float = 0.0
  dtype: str = 'float32'
  remat: bool = False
  accumulate: int = 1

  def _check(self) -> None:
    self._counts('epochs', 'batch_size', 'decay_rounds', 'accumulate')
    self._each(validate.positive, 'learning_rate')
    self._each(validate.below_one, 'momentum')
    self._each(validate.non_negative, 'weight_decay')
    self._each(validate.single, 'learning_rate', 'weight_decay')
    self._each(validate.probability, 'decay_rate')
    self._each(validate.fraction, 'final_fraction')
    validate.one_of(SCHEDULES, **{'client.learning_rate_schedule': self.learning_rate_schedule})
    validate.one_of(DTYPES, **{'client.dtype': self.dtype})
    self._named('optimizer', ('sgd',))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerSection(Section):
  """The server optimizer (Reddi et al. 2021, Algorithm 2); it ignores settings of other optimizers.

  Attributes:
    optimizer: 'sgd', 'fedavgm', 'fedadam', 'fedyogi', 'fedadagrad' or 'package.module:factory'.
    learning_rate: step size, > 0; 1 with 'sgd' is plain averaging.
    momentum: momentum of 'fedavgm', in [0, 1).
    beta1: decay of the first moment in 'fedadam' and 'fedyogi', in [0, 1).
    beta2: decay of the second moment in 'fedadam' and 'fedyogi', in [0, 1).
    tau: adaptivity of 'fedadam', 'fedyogi' and 'fedadagrad', > 0.
  """

  section: ClassVar[str] = 'server'
  optimizer: str = 'sgd'
  learning_rate: float = 1.0
  momentum: float = 0.9
  beta1: float = 0.9
  beta2: float = 0.99
  tau: float = 1e-3

  def _check(self) -> None:
    self._named('optimizer', tuple(SERVER_OPTIMIZERS))
    self._each(validate.positive, 'learning_rate', 'tau')
    self._each(validate.single, 'learning_rate', 'tau')
    self._each(validate.below_one, 'momentum', 'beta1', 'beta2')


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectionSection(Section):
  """The sampler: which clients take part in a round.

  Attributes:
    name: sampler: 'uniform', 'poisson', 'round_robin', 'min_separation', 'importance',
      'power_of_choice', 'oort', 'contribution' or 'package.module:factory'.
    cohort_size: clients in a round, C; under 'poisson' and 'importance' the expected number.
    dropout: probability that a selected client drops out after its work, in [0, 1).
    availability: trace of which clients are available: `use` = 'diurnal' or 'markov', and its
      arguments; empty = all clients in every round.
    clock: virtual clock that leaves out slow clients: `median_seconds` of a client in a round,
      `spread` of speeds, `jitter` from round to round, `deadline` in seconds, `sizes` = 'public' or
      'private' (default: a claim of privacy refuses that examples decide); empty = no clock.
    options: further keyword arguments of the sampler's factory.
  """

  section: ClassVar[str] = 'selection'
  name: str = 'uniform'
  cohort_size: int
  dropout: float = 0.0
  availability: dict[str, Any] = dataclasses.field(default_factory=dict)
  clock: dict[str, Any] = dataclasses.field(default_factory=dict)
  options: dict[str, Any] = dataclasses.field(default_factory=dict)

  def _check(self) -> None:
    self._named('name')
    self._counts('cohort_size')
    self._each(validate.below_one, 'dropout')


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightingSection(Section):
  """The weight of each update in the average.

  Attributes:
    name: 'examples', 'equal', 'capped', 'given' (by the data, or a list) or
      'package.module:factory'.
    options: keyword arguments of its factory (`cap`, `divisor`, `weights`).
  """

  section: ClassVar[str] = 'weighting'
  name: str = 'examples'
  options: dict[str, Any] = dataclasses.field(default_factory=dict)

  def _check(self) -> None:
    self._named('name')


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrivacySection(Section):
  """The privacy claim of a run; the noise itself is added by a stage.

  A run that sets a key of this section but has no stage that adds noise is refused.

  Attributes:
    delta: delta of the claim, in (0, 1); required if a stage adds noise.
    target_epsilon: budget of the whole run, > 0: the run ends before the round that would exceed
      it, and a stage without a `noise_multiplier` gets the least noise that keeps it; None = no
      budget.
    accountant: 'rdp', 'pld' or 'auto' (the one that states the smaller epsilon).
    adjacency: neighbouring relation; None = the one that the accountant supports for the sampler.
  """

  section: ClassVar[str] = 'privacy'
  delta: float | None = None
  target_epsilon: float | None = None
  accountant: str = 'auto'
  adjacency: str | None = None

  def _check(self) -> None:
    self._each(validate.open_fraction, 'delta')
    self._each(validate.positive, 'target_epsilon')
    validate.one_of(('auto', 'rdp', 'pld'), **{'privacy.accountant': self.accountant})


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSection(Section):
  """Evaluation of the server's model on the test set, and on what the clients hold out.

  Attributes:
    every: rounds between evaluations; the last round is always evaluated.
    batch_size: test examples in a batch on a device; on a CPU small batches are the fastest.
    clients: share of each client's examples that it does not train on, in [0, 1), drawn from the
      seed of the partition. The server's model is scored on them, client by client; 0 = it is not.
  """

  section: ClassVar[str] = 'evaluation'
  every: int = 1
  batch_size: int = 50
  clients: float = 0.0

  def _check(self) -> None:
    self._counts('every', 'batch_size')
    self._each(validate.below_one, 'clients')


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageSection(Section):
  """A further layer of the round; stages are listed in the order in which clients run them.

  Attributes:
    use: name in a registry of stages or 'package.module:factory'.
    options: keyword arguments of its factory.
    before_algorithm: whether it runs before the algorithm; a layer that states `Prepares` always
      does.
  """

  section: ClassVar[str] = 'stages'
  use: str
  options: dict[str, Any] = dataclasses.field(default_factory=dict)
  before_algorithm: bool = False

  def _check(self) -> None:
    self._named('use')
