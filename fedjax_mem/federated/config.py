"""Configs of the objects: frozen dataclasses, checked when made, with a description per field."""

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

from fedjax_mem import mechanisms
from fedjax_mem.core import validate

METHODS = ('top_k', 'random_k', 'quantization')
SELECTIONS = ('random', 'importance', 'contribution')


def _field(default: Any, doc: str) -> Any:
  """Returns a dataclass field with a default and a description for the reference."""
  return dataclasses.field(default=default, metadata={'doc': doc})


def describe(config: type) -> list[tuple[str, str, str, str]]:
  """Returns (name, type, default, description) of each field of a config class."""
  rows = []
  for field in dataclasses.fields(config):
    given = field.default
    default = 'required' if given is dataclasses.MISSING else _shown(given)
    rows.append((field.name, _name(field.type), default, field.metadata['doc']))
  return rows


def _shown(default: Any) -> str:
  if isinstance(default, enum.Enum):
    return default.name
  return f'"{default}"' if isinstance(default, str) else repr(default)


def _name(annotation: Any) -> str:
  return annotation.__name__ if isinstance(annotation, type) else str(annotation)


class NotEnoughClients(ValueError):
  """Fewer clients or sound updates than the round needs; nothing has changed."""


class AggregationStrategy(enum.Enum):
  """How the server combines the clients' updates.

  The members after SECURE_AGGREGATION are robust rules, those of `fedjax_mem.stages.aggregate` with
  the same names. They look at every single update. Their arguments are `ServerConfig.options`, such
  as `{'byzantine': 1}`.
  """

  FEDERATED_AVERAGING = 'federated_averaging'
  FEDERATED_SGD = 'federated_sgd'
  SECURE_AGGREGATION = 'secure_aggregation'
  MEDIAN = 'median'
  TRIMMED_MEAN = 'trimmed_mean'
  GEOMETRIC_MEDIAN = 'geometric_median'
  KRUM = 'krum'
  MULTI_KRUM = 'multi_krum'
  BULYAN = 'bulyan'
  CENTERED_CLIPPING = 'centered_clipping'
  NORM_BOUNDING = 'norm_bounding'
  DNC = 'dnc'
  SIGNGUARD = 'signguard'

  @property
  def robust(self) -> bool:
    """Whether the strategy is a robust rule, which withstands some malicious clients."""
    return self not in _PLAIN


_PLAIN = (
  AggregationStrategy.FEDERATED_AVERAGING,
  AggregationStrategy.FEDERATED_SGD,
  AggregationStrategy.SECURE_AGGREGATION,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrivacyConfig:
  """Differential privacy of one client: it clips its whole update and adds noise to it.

  Attributes:
    epsilon: budget for all releases of the client together, > 0.
    delta: delta of the guarantee, in (0, 1).
    max_grad_norm: clip norm of a whole update (L2; L1 under Laplace noise), > 0.
    noise_multiplier: standard deviation (Laplace: scale) of the noise over the clip norm, > 0;
      None: the least that keeps the budget over the planned releases.
    mechanism: 'gaussian', 'laplace', 'discrete_gaussian', or 'package.module:Class'.

  Raises:
    ValueError: a field is out of range.
  """

  epsilon: float = _field(1.0, 'Privacy budget')
  delta: float = _field(1e-5, 'Privacy breach probability')
  max_grad_norm: float = _field(1.0, 'Gradient clipping threshold')
  noise_multiplier: float | None = _field(None, 'Noise scale (auto-computed)')
  mechanism: str = _field('gaussian', 'Noise mechanism')

  def __post_init__(self) -> None:
    validate.positive(epsilon=self.epsilon)
    validate.open_fraction(delta=self.delta)
    validate.positive(max_grad_norm=self.max_grad_norm)
    if self.noise_multiplier is not None:
      validate.positive(noise_multiplier=self.noise_multiplier)
    kind = mechanisms.find(self.mechanism, fresh=True)
    try:
      kind(1.0)
    except (TypeError, ValueError) as error:
      raise ValueError(
        f'mechanism must be one that its size settles, got {self.mechanism!r}: {error}'
      ) from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompressionConfig:
  """Compression of updates.

  Attributes:
    method: 'top_k', 'random_k' or 'quantization'.
    compression_ratio: share of the values that are sent, in (0, 1]; not used by 'quantization'.
    quantization_bits: bits per value, 1 to 8; used by 'quantization' only.

  Raises:
    ValueError: a field is out of range.
  """

  method: str = _field('top_k', 'Compression method')
  compression_ratio: float = _field(0.1, 'Ratio of values to keep')
  quantization_bits: int = _field(8, 'Bits for quantization')

  def __post_init__(self) -> None:
    validate.one_of(METHODS, method=self.method)
    validate.probability(compression_ratio=self.compression_ratio)
    validate.integer(at_most=8, quantization_bits=self.quantization_bits)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClientConfig:
  """Settings of one client.

  Attributes:
    client_id: id of the client, distinct in a federation; any non-empty text. It is never used as a
      path.
    local_epochs: passes over the client's examples in a round, >= 1; FedSGD ignores it.
    batch_size: examples in a local step, >= 1.
    learning_rate: step size of the local steps, > 0; under FedSGD that of the server's step.
    privacy_config: clip and noise of the client; None: its update is neither clipped nor noised.
    compression_config: compression of the update; None: it is sent uncompressed.

  Raises:
    ValueError: a field is out of range.
  """

  client_id: str = dataclasses.field(metadata={'doc': 'Unique client identifier'})
  local_epochs: int = _field(3, 'Local training epochs')
  batch_size: int = _field(32, 'Local batch size')
  learning_rate: float = _field(1e-4, 'Local learning rate')
  privacy_config: PrivacyConfig | None = dataclasses.field(
    default=None, metadata={'doc': 'Privacy settings'}
  )
  compression_config: CompressionConfig | None = dataclasses.field(
    default=None, metadata={'doc': 'Compression settings'}
  )

  def __post_init__(self) -> None:
    if not isinstance(self.client_id, str) or not self.client_id:
      raise ValueError(f'client_id must be a text of at least one letter, got {self.client_id!r}.')
    if self.client_id.encode(errors='replace').decode() != self.client_id:
      raise ValueError(f'client_id must be a text that UTF-8 can say, got {self.client_id!r}.')
    validate.integer(local_epochs=self.local_epochs)
    validate.integer(batch_size=self.batch_size)
    validate.positive(learning_rate=self.learning_rate)
    _check_kind(PrivacyConfig, privacy_config=self.privacy_config)
    _check_kind(CompressionConfig, compression_config=self.compression_config)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerConfig:
  """Settings of the server and of its run.

  Attributes:
    min_clients: least number of clients and of sound updates in a round, >= 1; with fewer the round
      is not done.
    max_clients: largest number of clients selected for a round, >= min_clients.
    rounds: number of rounds of the run, >= 1; clients compute their noise for so many releases.
      Rounds of secure aggregation that end without a sum count.
    aggregation: an `AggregationStrategy`, or its value.
    selection_strategy: 'random'; 'importance': in proportion to the norms of the clients' updates;
      or 'contribution': by how much their updates lower the loss on the server's validation
      examples.
    require_enrolled: whether only clients whose keys were enrolled beforehand are admitted.
    client_timeout: seconds after which `run_round` leaves a client out, > 0; None: no limit.
    options: arguments of the aggregation rule, such as {'byzantine': 1}.
    selection_options: arguments of the selection strategy. For 'importance': 'explore', the share
      of the inclusion probabilities that is spread evenly (0.1). For 'contribution': 'explore', the
      share of the cohort that is drawn uniformly (0.3); 'method', one of 'shapley' (the default:
      exact for up to 8 clients a round, GTG-Shapley for more), 'gtg' and 'leave_one_out'; 'sweeps',
      'truncation', 'subsets' and 'batch_size', see `stages.select.contribution`.
    seed: seed of the run's public draws, in [0, 2**32): who is selected, the order of examples,
      what codecs draw. Clients draw their noise from secrets of their own.

  Raises:
    ValueError: a field is out of range.
  """

  min_clients: int = _field(3, 'Minimum clients per round')
  max_clients: int = _field(100, 'Maximum clients per round')
  rounds: int = _field(10, 'Number of training rounds')
  aggregation: AggregationStrategy = dataclasses.field(
    default=AggregationStrategy.FEDERATED_AVERAGING, metadata={'doc': 'Aggregation method'}
  )
  selection_strategy: str = _field('random', 'Client selection method')
  require_enrolled: bool = _field(False, 'Admit only clients enrolled beforehand')
  client_timeout: float | None = _field(600.0, 'Seconds a client may take, None: no limit')
  options: Mapping[str, Any] | None = _field(None, 'Options of the aggregation method')
  selection_options: Mapping[str, Any] | None = _field(None, 'Options of the selection method')
  seed: int = _field(0, 'Seed of all random draws but noise')

  def __post_init__(self) -> None:
    validate.integer(min_clients=self.min_clients)
    validate.integer(at_least=self.min_clients, max_clients=self.max_clients)
    validate.integer(rounds=self.rounds)
    if not isinstance(self.aggregation, AggregationStrategy):
      values = [x.value for x in AggregationStrategy]
      found = AggregationStrategy(validate.one_of(values, aggregation=self.aggregation))
      object.__setattr__(self, 'aggregation', found)
    validate.one_of(SELECTIONS, selection_strategy=self.selection_strategy)
    validate.boolean(require_enrolled=self.require_enrolled)
    if self.client_timeout is not None:
      validate.positive(client_timeout=self.client_timeout)
    _check_kind(Mapping, options=self.options)
    _check_kind(Mapping, selection_options=self.selection_options)
    secure = self.aggregation is AggregationStrategy.SECURE_AGGREGATION
    if secure and self.selection_strategy != 'random':
      raise ValueError(
        "selection_strategy must be 'random' under secure aggregation, got "
        f'{self.selection_strategy!r}, which looks at single updates.'
      )
    validate.seed(seed=self.seed)


def _check_kind(kind: type, **given: Any) -> None:
  """Raises `ValueError` unless the value is of the kind, or None."""
  ((name, value),) = given.items()
  if value is not None and not isinstance(value, kind):
    raise ValueError(f'{name} must be a {kind.__name__} or None, got {value!r}.')
