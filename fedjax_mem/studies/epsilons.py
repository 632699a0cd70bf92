"""Epsilon of published settings of DP-SGD and DP-FedAvg, beside what is computed here. No data.

All settings: Poisson sampling, Gaussian noise, neighbours that differ by one client or example. The
moments accountant of 2016 goes from Renyi divergences to (epsilon, delta) with a bound that is
looser than today's, so its epsilon is larger.
"""

import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from fedjax_mem import account
from fedjax_mem.core import Draws
from fedjax_mem.mechanisms import Gaussian
from fedjax_mem.report import citing, latex
from fedjax_mem.report.tables import format_table

NAME = 'privacy'


class Setting(NamedTuple):
  """A published setting.

  Attributes:
    name: of the row.
    sampled: expected clients (or examples) of a round.
    population: of how many.
    noise_multiplier: standard deviation of the noise over the clip norm.
    rounds: number of rounds.
    delta: of the claim.
    published: epsilon.
    source: where, and by which accountant.
  """

  name: str
  sampled: int
  population: int
  noise_multiplier: float
  rounds: int
  delta: float
  published: float
  source: str


_MOMENTS = 'Abadi et al. (2016), section 3.2: moments accountant'
_BU = 'Bu et al. (2020), figure 4: moments accountant'
_RDP = 'dp-accounting 0.6.0, RDP'
SETTINGS = (
  Setting('Abadi et al.', 1, 100, 4.0, 10_000, 1e-5, 1.26, _MOMENTS),
  Setting('MNIST, 20 epochs', 256, 60_000, 1.3, 4_688, 1e-5, 1.34, _BU),
  Setting('MNIST, 70 epochs', 256, 60_000, 0.7, 16_406, 1e-5, 8.68, _BU),
  Setting('TFF tutorial', 120, 3383, 1.2, 100, 1e-5, 2.0, 'TensorFlow Federated, tutorial on DP'),
  Setting('120 of 3,383', 120, 3383, 1.2, 100, 1e-5, 1.9861, _RDP),
  Setting('MNIST, 60 epochs', 256, 60_000, 1.1, 14_062, 1e-5, 2.5966, _RDP),
  Setting('1%, 10,000 rounds', 1, 100, 1.0, 10_000, 1e-5, 6.7128, _RDP),
  Setting('all clients', 1, 1, 5.0, 50, 1e-5, 7.0774, _RDP),
)
SOURCES = ('abadi2016deep', 'bu2020deep')


def rows(settings: Sequence[Setting] = SETTINGS) -> list[dict[str, Any]]:
  """Returns a line for each setting: the published epsilon, ours by RDP and by PLD.

  >>> (line,) = rows(SETTINGS[4:5])
  >>> line['published'], line['RDP'], line['PLD']
  (1.9861, 1.9861, 1.7075)
  """
  lines = []
  for x in settings:
    sampling = Draws('poisson', x.population, x.sampled, x.population)
    mechanism, ours = Gaussian(x.noise_multiplier), {}
    for name in ('rdp', 'pld'):
      said = account.epsilon(sampling, mechanism, x.rounds, x.delta, accountant=name)
      ours[name.upper()] = round(said.epsilon, 4)
    lines.append(
      {
        'setting': x.name,
        'sampling rate': f'{x.sampled}/{x.population}',
        'noise multiplier': x.noise_multiplier,
        'rounds': x.rounds,
        'delta': x.delta,
        'published': x.published,
        **ours,
        'RDP - published': round(ours['RDP'] - x.published, 4),
        'source': x.source,
      }
    )
  return lines


def write(lines: list[dict[str, Any]], out: str | os.PathLike[str]) -> list[pathlib.Path]:
  """Writes the table as Markdown, CSV and LaTeX, and its sources; returns the files."""
  out = pathlib.Path(out)
  out.mkdir(parents=True, exist_ok=True)
  texts = {
    'md': format_table(lines, 'markdown'),
    'csv': format_table(lines, 'csv'),
    'tex': latex.document(lines, 'Epsilon of published settings'),
    'bib': citing.entries(SOURCES),
  }
  for suffix, text in texts.items():
    (out / f'{NAME}.{suffix}').write_text(text, encoding='utf-8')
  return [out / f'{NAME}.{suffix}' for suffix in texts]
