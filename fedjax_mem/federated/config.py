"""Settings of the objects: frozen, checked when they are made, each field with a word on itself."""

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

from fedjax_mem import mechanisms
from fedjax_mem.core import validate

METHODS = ('top_k', 'random_k', 'quantization')
SELECTIONS = ('random', 'importance', 'contribution')


def _said(default: Any, doc: str) -> Any:
  """Returns a field with a default and what it is; `dataclasses.MISSING`: it must be given."""
  return dataclasses.field(default=default, metadata={'doc': doc})


def describe(config: type) -> list[tuple[str, str, str, str]]:
  """Returns (name, type, default, what it is) of each field of a config class."""
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
  """Fewer clients or sound updates than `min_clients`; nothing has changed."""


class AggregationStrategy(enum.Enum):
  """How the server combines the clients' updates.

  The robust rules look at every single update; their options are `ServerConfig.options`, such as
  `{'byzantine': 1}`. They are `fedjax_mem.stages.aggregate`'s, by the same names.
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
    """Whether it is a rule that withstands malicious clients."""
    return self not in _PLAIN


_PLAIN = (
  AggregationStrategy.FEDERATED_AVERAGING,
  AggregationStrategy.FEDERATED_SGD,
  AggregationStrategy.SECURE_AGGREGATION,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrivacyConfig:
  """Differential privacy of one client.

  Attributes:
    epsilon: budget of all releases, > 0.
    delta: in (0, 1).
    max_grad_norm: bound on the norm of a whole update (L2; L1 under Laplace noise), > 0.
    noise_multiplier: standard deviation (Laplace: scale) over the bound; None: the least that keeps
      the budget over the releases it is used for.
    mechanism: 'gaussian', 'laplace', 'discrete_gaussian', or 'package.module:Class'.

  Raises:
    ValueError: a field is out of range.
  """

  epsilon: float = _said(1.0, 'Privacy budget')
  delta: float = _said(1e-5, 'Privacy breach probability')
  max_grad_norm: float = _said(1.0, 'Gradient clipping threshold')
  noise_multiplier: float | None = _said(None, 'Noise scale (auto-computed)')
  mechanism: str = _said('gaussian', 'Noise mechanism')

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
  """How updates are made smaller.

  Attributes:
    method: 'top_k', 'random_k' or 'quantization'.
    compression_ratio: share of the values that are sent, in (0, 1]; not for 'quantization'.
    quantization_bits: of a value, 1 to 8; for 'quantization' only.

  Raises:
    ValueError: a field is out of range.
  """

  method: str = _said('top_k', 'Compression method')
  compression_ratio: float = _said(0.1, 'Ratio of values to keep')
  quantization_bits: int = _said(8, 'Bits for quantization')

  def __post_init__(self) -> None:
    validate.one_of(METHODS, method=self.method)
    validate.probability(compression_ratio=self.compression_ratio)
    validate.integer(at_most=8, quantization_bits=self.quantization_bits)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClientConfig:
  """One client.

  Attributes:
    client_id: distinct in a federation; any text but none. It is never used as a path.
    local_epochs: passes over the client's examples in a round, >= 1; FedSGD ignores it.
    batch_size: examples a local step, >= 1.
    learning_rate: of the local steps, > 0; under FedSGD of the server's step.
    privacy_config: of the client's own noise; None: its update leaves as it is.
    compression_config: None: updates are sent whole.

  Raises:
    ValueError: a field is out of range.
  """

  client_id: str = dataclasses.field(metadata={'doc': 'Unique client identifier'})
  local_epochs: int = _said(3, 'Local training epochs')
  batch_size: int = _said(32, 'Local batch size')
  learning_rate: float = _said(1e-4, 'Local learning rate')
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
  """The server, and a run of it.

  Attributes:
    min_clients: updates without which a round does not count, >= 1.
    max_clients: the most clients selected for a round, >= min_clients.
    rounds: of the run, >= 1; clients' noise is computed for so many.
    aggregation: an `AggregationStrategy`, or its value.
    selection_strategy: 'random'; 'importance', by the norms of updates; or 'contribution', by what
      updates do to the loss on the server's validation examples.
    require_enrolled: only keys that were enrolled beforehand are let in.
    client_timeout: seconds after which a client of `run_round` is left out, or None.
    options: of the aggregation rule, such as {'byzantine': 1}.
    selection_options: of the selection strategy. 'importance': 'explore', the share of the chances
      that is spread evenly (0.1). 'contribution': 'explore', the share of the places that is drawn
      uniformly (0.3); 'method', one of 'shapley' (the default: exact for up to 8 clients a round,
      GTG-Shapley above), 'gtg' and 'leave_one_out'; 'sweeps', 'truncation', 'subsets' and
      'batch_size', see `stages.select.contribution`.
    seed: all that is random in the run follows from it; in [0, 2**32).

  Raises:
    ValueError: a field is out of range.
  """

  min_clients: int = _said(3, 'Minimum clients per round')
  max_clients: int = _said(100, 'Maximum clients per round')
  rounds: int = _said(10, 'Number of training rounds')
  aggregation: AggregationStrategy = dataclasses.field(
    default=AggregationStrategy.FEDERATED_AVERAGING, metadata={'doc': 'Aggregation method'}
  )
  selection_strategy: str = _said('random', 'Client selection method')
  require_enrolled: bool = _said(False, 'Whether only keys enrolled beforehand are let in')
  client_timeout: float | None = _said(600.0, 'Seconds a client may take, None: any')
  options: Mapping[str, Any] | None = _said(None, 'Options of the aggregation method')
  selection_options: Mapping[str, Any] | None = _said(None, 'Options of the selection method')
  seed: int = _said(0, 'Seed of everything random')

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
