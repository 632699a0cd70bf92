"""Every draw of the package names its generator and its dtype: no flag of JAX can change it."""

import ast
import re
from pathlib import Path

import pytest

import fedjax_mem

ROOT = Path(fedjax_mem.__file__).parent
# Draws of numbers -> the position of their dtype, after the key.
DTYPES = {
  'bits': 2, 'exponential': 2, 'gumbel': 2, 'laplace': 2, 'logistic': 2, 'normal': 2,
  'rademacher': 2, 'randint': 4, 'truncated_normal': 4, 'uniform': 2,
}  # fmt: skip
KEYS = ('key', 'PRNGKey')
# Those whose dtype no flag decides; `bernoulli` takes that of its probability.
FREE = ('bernoulli', 'fold_in', 'key_data', 'permutation', 'split', 'wrap_key_data')


def faults(text):
  """Yields (line, what is wrong) of the draws in a source."""
  for node in ast.walk(ast.parse(text)) if 'jax.random.' in text else ():
    if not isinstance(node, ast.Call):
      continue
    name = ast.unparse(node.func)
    if not re.fullmatch(r'jax\.random\.\w+', name):
      continue
    name, given = name.removeprefix('jax.random.'), {x.arg for x in node.keywords}
    if name in KEYS:
      if 'impl' not in given:
        yield node.lineno, f'{name} without impl'
    elif name in DTYPES:
      if len(node.args) <= DTYPES[name] and 'dtype' not in given:
        yield node.lineno, f'{name} without a dtype'
    elif name == 'bernoulli':
      if 'float32' not in ast.unparse(node.args[1]):
        yield node.lineno, 'bernoulli of a probability that is not float32'
    elif name not in FREE:
      yield node.lineno, f'{name}, which is not known here'


def test_every_draw_names_its_generator_and_its_dtype():
  found = {
    f'{path.relative_to(ROOT)}:{line}': fault
    for path in ROOT.rglob('*.py')
    for line, fault in faults(path.read_text(encoding='utf-8'))
  }
  assert found == {}


@pytest.mark.parametrize(
  'text',
  [
    'jax.random.key(0)', 'jax.random.uniform(key, (3,))', 'jax.random.randint(key, (3,), 0, 9)',
    'jax.random.bernoulli(key, 0.5)', 'jax.random.poisson(key, 1.0)',
  ],
)  # fmt: skip
def test_what_names_neither_is_found(text):
  assert len(list(faults(text))) == 1
