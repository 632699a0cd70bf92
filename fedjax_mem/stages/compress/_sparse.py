"""How many values a sparse codec sends."""

from fedjax_mem.core import validate


def check(k: int | None, fraction: float | None) -> None:
  """Raises `ValueError` unless exactly one of `k` (>= 1) and `fraction` (in (0, 1]) is given."""
  if k is not None:
    validate.integer(k=k)
  if fraction is not None:
    validate.probability(fraction=fraction)
  if (k is None) == (fraction is None):
    raise ValueError(
      f'either k or fraction must be given, got k = {k!r} and fraction = {fraction!r}.'
    )


def resolve(size: int, k: int | None, fraction: float | None) -> int:
  """Returns how many of `size` values are sent, at least one."""
  return k if k is not None else max(1, round((fraction or 0) * size))


def check_size(size: int, k: int | None) -> None:
  """Raises `ValueError` if `k` is more than `size`, the number of values."""
  if k is not None and k > size:
    raise ValueError(f'k must be at most the {size} values of an update, got {k!r}.')
