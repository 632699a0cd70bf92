"""The bytes of what crosses: only what has to, and nothing that a byte of it can break."""

import jax
import numpy as np
import pytest
from reference import tiny

from fedjax_mem import stages
from fedjax_mem.core import IncompatibleStages, compose, tree, wire
from fedjax_mem.deploy import job
from fedjax_mem.deploy.data import Expected
from fedjax_mem.deploy.form import NEVER, Asked
from fedjax_mem.engine import Told
from fedjax_mem.stages import compress, privacy

EXPECTED = Expected(
  x_shape=(tiny.FEATURES,),
  x_dtype='float32',
  y_shape=(),
  num_classes=tiny.CLASSES,
  input_shape=(tiny.FEATURES,),
  preprocess=None,
  num_clients=tiny.N,
  most=max(tiny.COUNTS),
  equal=False,
)
SIZE = tiny.FEATURES * tiny.CLASSES + tiny.CLASSES


def form(*layers, weigh=None):
  """Returns how the messages of a round around these layers are written."""
  weigh = stages.weigh.by_examples() if weigh is None else weigh
  whole = compose(tiny.algorithm(), tiny.rota(), weigh, *layers)
  params = tree.shapes(tiny.initial())
  return job.plan(whole, params, EXPECTED, tiny.DATA[0], lambda batch: batch).form


@pytest.fixture(scope='module')
def dense():
  return form()


def empty(form):
  """Returns an answer whose message is zeros of weight 0."""
  zeros = lambda like: jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
  rising = lambda x: np.arange(x.size, dtype=x.dtype).reshape(x.shape)
  indexed = any(
    isinstance(x, wire.Indices) for code in form._codes for x in compress.parts_of(code)
  )
  codes = jax.tree.map(rising, form._codes) if indexed else zeros(form._codes)
  return form.answer(zeros(form._made)._replace(fine=np.True_), codes, 5)


def test_a_task_comes_back_as_it_was(dense):
  told = Told(np.int32(7), jax.device_get(tiny.initial()), {})
  body = dense.ask(Asked(told, NEVER, 0.25))
  assert len(body) == dense.bytes_down == 12 + 4 * SIZE
  asked = dense.asked(body)
  assert (int(asked.told.round), asked.last, asked.chance) == (7, NEVER, 0.25)
  for a, b in zip(jax.tree.leaves(asked.told), jax.tree.leaves(told), strict=True):
    np.testing.assert_array_equal(a, b)
  for wrong in (body[:-1], body + b'0', b''):
    with pytest.raises(ValueError, match='a task must have'):
      dense.asked(wrong)


def test_an_answer_comes_back_bit_for_bit(dense):
  made = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), dense._made)
  rng = np.random.default_rng(0)
  update = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), made.message.update)
  message = made.message._replace(update=update, weight=np.float32(9.5))
  body = dense.answer(made._replace(message=message, fine=np.True_), (), 9)
  assert len(body) == dense.bytes_up
  answer = dense.read(body, 1, 0, 3)
  assert answer.fine and answer.examples == 9 and answer.message.weight == np.float32(9.5)
  for a, b in zip(jax.tree.leaves(answer.message.update), jax.tree.leaves(update), strict=True):
    np.testing.assert_array_equal(a, b)


def test_a_value_that_is_not_finite_is_seen_whatever_the_client_says(dense):
  made = jax.tree.map(lambda x: np.full(x.shape, np.inf).astype(x.dtype), dense._made)
  message = made.message._replace(weight=np.float32(1))
  assert not dense.read(dense.answer(made._replace(message=message), (), 1), 1, 0, 3).fine


def broken(form, tries=150):
  """Checks that no change of an answer's bytes makes anything but an answer or a refusal."""
  body, rng, refused = empty(form), np.random.default_rng(0), 0
  assert len(body) <= form.bytes_up
  for i in range(tries):
    changed = np.frombuffer(body, np.uint8).copy()
    at = rng.integers(len(body), size=1 + i % 3)
    changed[at] = rng.integers(256, size=len(at))
    try:
      answer = form.read(changed.tobytes()[: len(body) - (i % 7 == 0)], 1, 0, 3)
    except ValueError:
      refused += 1
    else:
      assert 0 <= answer.message.weight < np.inf
      assert tree.shapes(answer.message.update) == tree.shapes(form._made.message.update)
  assert refused


def test_no_bytes_break_the_server(dense):
  broken(dense)


CODES = {
  'top_k': lambda: compress.top_k(0.3),
  'quantize': lambda: compress.quantize(4),
  'random_k': lambda: compress.random_k(0.3),
  'eden': lambda: compress.eden(2),
  'chain': lambda: compress.chain(compress.top_k(0.3), compress.quantize(8)),
  'error_feedback': lambda: compress.error_feedback(compress.top_k(0.3)),
}
DENSE = ('random_k',)  # adds: its values are decoded after the sum


@pytest.mark.slow
@pytest.mark.parametrize('codec', CODES)
def test_no_bytes_of_a_code_break_the_server(codec):
  made = form(CODES[codec]())
  assert made.kind == ('dense' if codec in DENSE else 'code')
  assert made.bytes_up < form().bytes_up
  broken(made, 60)


def test_only_server_states_that_clients_read_are_told(dense):
  assert dense.servers == {} and not dense.quiet


@pytest.mark.slow
def test_noise_that_protects_later_rounds_is_told_to_nobody():
  made = form(privacy.tree(1.0, 0.5, restart=1), weigh=stages.weigh.equal(6.0))
  assert made.servers == {} and made.quiet
  whole = form(privacy.adaptive_clip(0.5, 6.0), weigh=stages.weigh.equal(6.0))
  assert whole.servers != {}  # the bound, by which clients clip
  assert sum(x.size for x in jax.tree.leaves(whole.servers)) < SIZE


@pytest.mark.slow
def test_a_client_side_that_reads_correlated_noise_is_refused():
  noise = privacy.tree(1.0, 0.5, restart=1)
  kept = noise.client.apply

  def apply(ctx, message, state):
    del state
    seen = sum(x.astype('float32').sum() for x in jax.tree.leaves(ctx.server_state))
    message = message._replace(update=jax.tree.map(lambda x: x + 0 * seen, message.update))
    return kept(ctx, message, ())

  peeks = noise._replace(client=noise.client._replace(apply=apply))
  with pytest.raises(IncompatibleStages, match='reads the noise of its server state'):
    form(peeks, weigh=stages.weigh.equal(6.0))
