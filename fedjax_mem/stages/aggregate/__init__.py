"""Robust aggregation: rules for the server that withstand byzantine (hostile) clients."""

from collections.abc import Callable

from fedjax_mem.core import Layer
from fedjax_mem.stages.aggregate._base import rule
from fedjax_mem.stages.aggregate.bucketing import bucketing
from fedjax_mem.stages.aggregate.bulyan import bulyan
from fedjax_mem.stages.aggregate.centered_clipping import centered_clipping
from fedjax_mem.stages.aggregate.dnc import dnc
from fedjax_mem.stages.aggregate.geometric_median import geometric_median
from fedjax_mem.stages.aggregate.krum import krum
from fedjax_mem.stages.aggregate.median import median
from fedjax_mem.stages.aggregate.multi_krum import multi_krum
from fedjax_mem.stages.aggregate.nnm import nnm
from fedjax_mem.stages.aggregate.norm_bounding import norm_bounding
from fedjax_mem.stages.aggregate.signguard import signguard
from fedjax_mem.stages.aggregate.trimmed_mean import trimmed_mean

AGGREGATION: dict[str, Callable[..., Layer]] = {
  'median': median,
  'trimmed_mean': trimmed_mean,
  'krum': krum,
  'multi_krum': multi_krum,
  'bulyan': bulyan,
  'geometric_median': geometric_median,
  'centered_clipping': centered_clipping,
  'norm_bounding': norm_bounding,
  'dnc': dnc,
  'signguard': signguard,
  'bucketing': bucketing,
  'nnm': nnm,
}

__all__ = (
  'AGGREGATION',
  'bucketing',
  'bulyan',
  'centered_clipping',
  'dnc',
  'geometric_median',
  'krum',
  'median',
  'multi_krum',
  'nnm',
  'norm_bounding',
  'rule',
  'signguard',
  'trimmed_mean',
)
