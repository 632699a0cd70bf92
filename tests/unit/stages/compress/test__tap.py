"""Codes for who sends them: what is tapped is what the client's side has decoded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import given

from fedjax_mem import engine
from fedjax_mem.core import Encodes, scalar_member, tree
from fedjax_mem.stages import compress
from fedjax_mem.stages.compress import _tap, eden, top_k

UPDATE = {'a': np.linspace(-1, 1, 64, dtype=np.float32)[None]}


def sent(codec, listen=True):
  """Returns (what one client's side makes, the codes, the codecs)."""
  sim = given.build(UPDATE, codec, execution='loop')
  told = engine.Told(jnp.int32(0), tree.zeros(sim.params), {})
  seed, root = jnp.uint32(3), jnp.zeros(2, jnp.uint32)
  codecs = []

  def ran(arrays):
    rows = engine.first_rows(sim.setting, told.params, jnp.int32(0), seed, root)
    client = scalar_member(jnp.int32(0))
    one = lambda: engine.one_client(
      sim.setting, told, arrays, jnp.int32(1), client, rows, seed, root
    )
    if not listen:
      return one().message.update, ()
    with compress.tapped() as taken:
      made = one()
    codecs.extend(x.codec for x in taken)
    return made.message.update, tuple(x.code for x in taken)

  update, codes = jax.device_get(jax.jit(ran)(UPDATE))
  return update, codes, codecs


@pytest.mark.slow
def test_a_code_is_that_from_which_the_update_was_decoded():
  update, (code,), (codec,) = sent(top_k(0.125))
  draws = compress.Keys(None, None)
  decoded = codec.decode(draws, code, ((64,),))
  np.testing.assert_array_equal(np.asarray(compress.unflat(decoded, update)['a']), update['a'])
  assert np.count_nonzero(update['a']) == 8


@pytest.mark.slow
def test_codecs_with_a_shortcut_encode_for_a_listener():
  assert eden(2).fact(Encodes).codec.estimate
  assert len(sent(eden(2))[1]) == 1


@pytest.mark.slow
def test_nobody_gets_codes_who_has_not_asked():
  assert sent(top_k(0.125), listen=False)[1:] == ((), [])
  assert not _tap.listening()


def test_a_listener_hears_nothing_after_an_error():
  with pytest.raises(RuntimeError), compress.tapped():
    assert _tap.listening()
    raise RuntimeError
  assert not _tap.listening()
