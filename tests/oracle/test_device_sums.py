"""No compiled round leaves the order of a sum of floats over devices to the network.

Four devices in one process, in two and in four must give the same bits: `kernels/loops/across.py`
adds in the order of the devices. Here the compiled programs of all recorded stacks are read: none
may reduce floats by an addition across devices.
"""

import math
import re
from pathlib import Path

import jax
import pytest

from fedjax_mem.config.load import load_config
from fedjax_mem.engine.mesh import AXIS, make_mesh
from fedjax_mem.runner.prepare import get_ready

STACKS = {path.stem: path for path in sorted((Path(__file__).parent / 'stacks').glob('*.toml'))}
FIRST = ('robust_dnc_mimic', 'fedavg_pooled', 'private_central_uniform')

_REDUCTION = re.compile(r'= (.*?) (?:all-reduce|reduce-scatter)(?:-start)?\(.*to_apply=%?([\w.-]+)')
_FLOATS = re.compile(r'\b(?:f16|bf16|f32|f64|c64|c128)\[')


def float_sums(text):
  """Returns the lines of a compiled program that add floats across devices."""
  found = []
  for line in text.splitlines():
    match = _REDUCTION.search(line)
    if match and _FLOATS.search(match[1]):
      body = re.search(rf'%?{re.escape(match[2])} \([^\n]*{{\n(.*?)\n}}', text, re.S)
      if body is None or ' add(' in body[1]:
        found.append(line)
  return found


@pytest.mark.standard_promotion
@pytest.mark.first(3)
@pytest.mark.parametrize('name', sorted(STACKS, key=lambda name: (name not in FIRST, name)))
def test_no_stack_adds_floats_in_an_order_of_the_network(name):
  ready = get_ready(load_config(STACKS[name], ['execution.devices=2']), None, {})
  assert ready.sim.setting.layout.devices == 2
  assert float_sums(ready.sim.traced().lower().compile().as_text()) == []


def test_the_reading_finds_a_sum_of_floats_and_no_other():
  spec = jax.sharding.PartitionSpec

  def text(f, dtype):
    mapped = jax.shard_map(
      f, mesh=make_mesh(2), in_specs=spec(AXIS), out_specs=spec(), check_vma=False
    )
    shape = jax.ShapeDtypeStruct((4, 3), dtype)
    return jax.jit(mapped).lower(shape).compile().as_text()

  assert float_sums(text(lambda x: jax.lax.psum(x, AXIS), 'float32'))
  assert not float_sums(text(lambda x: jax.lax.psum(x, AXIS), 'int32'))
  assert not float_sums(text(lambda x: jax.lax.pmax(x, AXIS), 'float32'))


@pytest.mark.parametrize('name', ['fedavg', 'scaffold'])
def test_a_linear_stack_sends_its_updates_once_a_round_and_all_else_in_one_message(name):
  """Two messages a round; what clients that are away need goes in loops of their own."""
  options = ['execution.devices=2', 'execution.data=divided']
  ready = get_ready(load_config(STACKS[name], options), None, {})
  text = ready.sim.traced().lower().compile().as_text()
  kinds = 'all-gather|all-to-all|all-reduce|collective-permute|reduce-scatter'
  sent = re.findall(rf'= (\S+) ({kinds})\(.*op_name="([^"]*)"', text)
  assert all('/shard_map/' in where for _, _, where in sent)  # none by the compiler's own choice
  once = [(shape, kind) for shape, kind, where in sent if 'shard_map/while' not in where]
  size = sum(x.size for x in jax.tree.leaves(ready.parts.like))
  assert sorted(kind for _, kind in once) == ['all-gather'] * 2
  shapes = [re.search(r'\[([\d,]*)\]', x)[1] for x, _ in once]
  assert sum(math.prod(map(int, x.split(','))) >= size for x in shapes) == 1
