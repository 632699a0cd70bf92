"""What does compression cost in a round? W1 with each codec against W1 without, in turns.

python -m benchmarks.compression [--segments 6] [--segment 4] [--only top_k quantize eden ...]

A JSON line a codec: seconds of a round, `overhead` (the ratio of the medians less one) and
`overhead_of_pairs` (the median of the ratios less one), of segments of several rounds, as a run has
them: the first round of a program that keeps rows of clients gets its memory from the system. The
population has 100 clients, so that the memory of error feedback, a residual for each, fits.
"""

import argparse
import dataclasses
import functools
import json

from benchmarks import measure, works
from fedjax_mem.core import Layer
from fedjax_mem.runner import devices
from fedjax_mem.stages import compress

CODECS: dict[str, tuple[Layer, ...]] = {
  'top_k': (compress.top_k(fraction=0.05),),
  'top_k with error feedback': (compress.error_feedback(compress.top_k(fraction=0.05)),),
  'random_k': (compress.random_k(fraction=0.05),),
  'quantize': (compress.quantize(bits=8, block=1024),),
  'sign': (compress.sign(),),
  'eden': (compress.eden(bits=2),),
  'low_rank': (compress.low_rank(rank=2),),
}


def main() -> None:
  """Measures the codecs that the command line names, one at a time."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--segments', type=int, default=6, help='segments of each that are timed')
  parser.add_argument('--segment', type=int, default=4, help='rounds of a segment')
  parser.add_argument('--only', nargs='+', choices=sorted(CODECS), default=list(CODECS))
  parser.add_argument('--data-dir')
  args = parser.parse_args()
  devices.prepare('auto')
  work = dataclasses.replace(works.WORKS['W1'], num_clients=100)
  simulation = functools.partial(works.simulation, work, args.data_dir, segment=args.segment)
  plain = simulation()
  for name in args.only:
    runs = {'plain': plain, name: simulation(*CODECS[name])}
    times = measure.in_turn(runs, args.segments)
    facts = {'codec': name, 'plain': measure.spread(times['plain'])}
    print(json.dumps(facts | measure.overhead(times['plain'], times[name])), flush=True)


if __name__ == '__main__':
  main()
