"""The search for the largest number that fits a budget, with few trials."""

from collections.abc import Callable


def largest(fits: Callable[[int], bool], most: int, guess: int = 1) -> int:
  """Returns the largest k in [1, most] with fits(k), given fits(1) and that fits is monotone.

  The search begins at `guess`.
  """
  low, high = 1, most + 1
  middle = max(guess, 2)
  step = max(1, middle // 8)
  while high - low > 1:
    if not low < middle < high:
      middle = (low + high) // 2
    if fits(middle):
      low, middle = middle, middle + step
    else:
      high, middle = middle, middle - step
    step *= 2
  return low
