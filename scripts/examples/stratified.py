"""A stratified sampler: who is drawn, by a law of one's own.

In a configuration: `[selection] name = "stratified:stratified"`, with this folder on PYTHONPATH.
"""

import jax
import jax.numpy as jnp

import fedjax_mem as fm
from fedjax_mem.core import validate


def stratified(num_clients, cohort_size, strata=2):
  """Returns a draw of equally many clients, without replacement, from each of some strata.

  The strata are the ids modulo their number: they are public, and so the draw looks at nothing. No
  accountant knows this law, so it amplifies nothing.

  Args:
    num_clients: N.
    cohort_size: C, a multiple of the strata, at most N rounded down to one.
    strata: how many, >= 1.
  """
  validate.integer(num_clients=num_clients)
  validate.integer(strata=strata)
  each = num_clients // strata
  validate.integer(at_most=each * strata, cohort_size=cohort_size)
  if cohort_size % strata:
    raise ValueError(f'cohort_size must be a multiple of strata = {strata}, got {cohort_size!r}.')

  def select(ctx, draw, state):
    order = jax.vmap(lambda key: jax.random.permutation(key, each))
    chosen = order(jax.random.split(ctx.key, strata))[:, : cohort_size // strata]
    ids = (chosen * strata + jnp.arange(strata)[:, None]).reshape(-1).astype(jnp.int32)
    on, chance = jnp.ones(cohort_size, bool), jnp.full(cohort_size, cohort_size / (each * strata))
    return draw._replace(cohort=fm.Member(ids, on, on, chance.astype(jnp.float32))), state, {}

  law = fm.Draws('by strata', num_clients, cohort_size, cohort_size)
  return fm.Layer('select', select=fm.Stage(select, facts=(law, fm.Looks('nothing'))))
