"""The protocol in place of simulated masks: the same integers, and nothing but their sum."""

import functools
import gc
import hashlib
import types
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from reference import stages, tiny

from fedjax_mem import engine
from fedjax_mem.core import (
  IncompatibleStages,
  Layer,
  Masks,
  Message,
  Noises,
  Stage,
  Task,
  compose,
  tree,
)
from fedjax_mem.deploy import secure
from fedjax_mem.secagg import messages as secagg
from fedjax_mem.secagg.errors import BelowThreshold, ProtocolError
from fedjax_mem.secagg.messages import Kind
from fedjax_mem.secagg.protocol import rounds
from fedjax_mem.stages import privacy
from fedjax_mem.stages.compress import random_k
from fedjax_mem.stages.masks import integers, mask
from fedjax_mem.stages.select import round_robin
from fedjax_mem.stages.weigh import by_examples, equal

NAME, CLIENTS, BITS = bytes(16), 4, 12
LIKE = Message(
  {'a': jax.ShapeDtypeStruct((2, 3), jnp.int32), 'b': jax.ShapeDtypeStruct((2,), jnp.int32)},
  jax.ShapeDtypeStruct((), jnp.float32),
  {'count': jax.ShapeDtypeStruct((2,), jnp.float32)},
)


@functools.cache
def keys(number):
  return [Ed25519PrivateKey.generate() for _ in range(number)]


def opened(sealing, clients=CLIENTS, threshold=None, active=True):
  """Returns (session, its parties)."""
  made = [secure.identity(key) if active else None for key in keys(clients)]
  session = sealing.session(NAME, clients, threshold, [x.public for x in made] if active else ())
  return session, [secure.Party(session, i, x) for i, x in enumerate(made)]


def sealing(largest=2**9, bits=BITS, clients=CLIENTS, least=1):
  return secure.Sealing(LIKE, bits, largest, clients, least)


def drawn(number=0, largest=2**9):
  """Returns the integers of one client."""
  rng = np.random.default_rng(number)
  draw = lambda x, top: rng.integers(-top, top, x.shape, np.int32, endpoint=True)
  return Message(
    jax.tree.map(lambda x: draw(x, largest), LIKE.update),
    np.int32(rng.integers(0, 2**24)),
    {'count': draw(LIKE.aux['count'], 2**24)},
  )


def residues(update, bits, dtype=np.int64):
  return jax.tree.map(lambda x: (x.astype(np.int64) % 2**bits).astype(dtype), update)


def asking(parties, values, lost=None, change=None):
  """Returns the exchange with parties of this process.

  Args:
    parties: by slot.
    values: slot -> its integers.
    lost: slot -> the first kind that it does not answer.
    change: (kind, slot, answer) -> the answer that arrives.
  """

  def ask(kind, inbox):
    answers = {}
    for slot, message in inbox.items():
      if lost is None or kind < lost.get(slot, kind + 1):
        made = parties[slot].answer(kind, message, lambda slot=slot: values[slot])
        answers[slot] = made if change is None else change(kind, slot, made)
    return answers

  return ask


def collected(lost=None, change=None, active=True, code=None, messages=None):
  code = sealing() if code is None else code
  messages = [drawn(i) for i in range(code.clients)] if messages is None else messages
  session, parties = opened(code, code.clients, active=active)
  values = [code.values(x) for x in messages]
  return secure.collect(session, asking(parties, values, lost, change)), values, parties


# What is summed.


@pytest.mark.parametrize('bits, largest', [(12, 2**9), (32, 2**31 - 1), (31, 2**30)])
def test_the_sum_is_that_of_int32_whatever_the_modulus(bits, largest):
  """Update modulo 2 ** bits, weight and aux modulo 2 ** 32, as the simulation adds them."""
  code = sealing(2 ** (bits - 1), bits)
  messages = [drawn(i, largest) for i in range(CLIENTS)]
  if bits < 32:  # as what a masked client of the simulation sends: in 0 … 2 ** bits - 1
    messages[1] = messages[1]._replace(update=residues(messages[1].update, bits, np.int32))
  got = code.message(collected(active=False, code=code, messages=messages)[0].total)
  wanted = functools.reduce(lambda a, b: jax.tree.map(np.add, a, b), messages)
  tiny.assert_same_bits((got.weight, got.aux), (wanted.weight, wanted.aux))
  tiny.assert_same_bits(residues(got.update, bits), residues(wanted.update, bits))
  assert {x.dtype for x in jax.tree.leaves(got)} == {np.dtype(np.int32)}


@pytest.mark.parametrize(
  'largest, clients, bits', [(2**29 - 1, 4, 32), (2**29, 4, 64), (2**31, 2, 64)]
)
def test_a_session_has_the_fewest_bits_in_which_the_sum_cannot_overflow(largest, clients, bits):
  code = sealing(largest, 32, clients)
  session = code.session(NAME, clients)
  assert (session.bits, session.size) == (bits, 8 + 1 + 2)
  assert clients * max(largest, 2**30 // clients) <= clients * session.bound < 2 ** (bits - 1)


def test_clients_lost_before_and_after_they_sent_their_values():
  """Lost after key sharing: not in the sum. Lost after masking: in it, and nothing is left."""
  code = sealing(clients=7)
  got, values, _ = collected({2: Kind.MASKED, 5: Kind.CHECK}, code=code)
  assert got.survivors == (0, 1, 3, 4, 5, 6) and got.refused == ()
  np.testing.assert_array_equal(got.total, sum(values[i] for i in got.survivors))


@pytest.mark.parametrize('kind', (*rounds(sealing().session(NAME, 2)), Kind.CHECK))
def test_below_the_threshold_nothing_is_released(kind):
  with pytest.raises(BelowThreshold, match='nothing is released'):
    collected({0: kind, 1: kind})  # two of four stay, and three are needed


def test_the_threshold_is_that_of_the_mode_and_of_what_the_round_releases():
  public = [secure.identity(key).public for key in keys(CLIENTS)]
  session = lambda least, *args: sealing(least=least).session(NAME, CLIENTS, *args).threshold
  assert [session(1), session(4), session(1, None, public)] == [3, 4, 3]
  with pytest.raises(ValueError, match=r'threshold must be at least 4, .*got 3'):
    session(4, 3)
  with pytest.raises(BelowThreshold, match='clients must be 4 or more, got 3'):
    sealing(least=4).session(NAME, 3)
  with pytest.raises(BelowThreshold, match='clients must be 2 or more, got 1'):
    sealing().session(NAME, 1)
  with pytest.raises(ValueError, match='clients must be at most 4, got 5'):
    sealing().session(NAME, 5)


def test_noise_beyond_the_modulus_is_within_the_bound_of_the_session():
  """Only the residue counts; a client that refused its own noise would show that it was large."""
  code = sealing(2 ** (BITS - 1))
  noisy = [drawn(i, 2**31 - 1)._replace(weight=np.int32(1)) for i in range(CLIENTS)]
  noisy = [x._replace(aux={'count': np.ones(2, np.int32)}) for x in noisy]
  got = code.message(collected(code=code, messages=noisy)[0].total)
  wanted = functools.reduce(lambda a, b: jax.tree.map(np.add, a, b), noisy)
  tiny.assert_same_bits(residues(got.update, BITS), residues(wanted.update, BITS))
  assert code.session(NAME, CLIENTS).bits == 32 and np.abs(code.values(noisy[0])).max() < 2**BITS


def test_messages_of_other_shapes_are_refused():
  with pytest.raises(ValueError, match='message must be int32 of the shapes'):
    sealing().values(drawn()._replace(weight=np.float32(1)))
  with pytest.raises(ValueError, match='message must be int32 of the shapes'):
    sealing().values(drawn()._replace(aux={'other': np.zeros(2, np.int32)}))
  with pytest.raises(ValueError, match='total must be 11 int64, got int32'):
    sealing().message(np.zeros(11, np.int32))


# The deployed round and the simulated one.


def spied(layer):
  """Returns the layer whose server state is what its server side hands on, in both its forms."""
  inner, (_, _, masks) = layer.server, layer.client.facts

  def server(ctx, message, state):
    given, _, metrics = inner.apply(ctx, message, state)
    return given, given, metrics

  bare = None if masks.bare is None else spied(masks.bare)
  facts = (*layer.client.facts[:-1], Masks(masks.bits, bare))
  return layer._replace(
    client=layer.client._replace(facts=facts),
    server=Stage(server, lambda ctx: tree.zeros(ctx.spec), inner.facts),
  )


def everyone(gone):
  """Returns a sampler of all clients, of which `gone` drop out."""
  stays = lambda ctx, cohort: cohort.arrived & ~jnp.isin(cohort.id, jnp.array(gone, jnp.int32))
  change = lambda ctx, cohort: cohort._replace(arrived=stays(ctx, cohort))
  return tiny.changed(round_robin(tiny.N, tiny.N), change)


def stack(name, gone):
  """Returns a round of a name in STACKS, in which all clients are selected and some drop out."""
  weigh, layers = STACKS[name]
  *before, last = layers()
  claims = any(x.fact(Noises) is not None for x in before)  # then no sum without noise may be kept
  last = last if claims else spied(last)
  return compose(tiny.algorithm(), everyone(gone), weigh(), *before, last)


def aux():
  """Returns a layer that sums an array beside the update, and hands it to its own state."""

  def client(ctx, message, state):
    extra = jnp.arange(3, dtype=jnp.float32) * ctx.client.id.astype(jnp.float32)
    return message._replace(aux={**message.aux, 'extra': extra}), state, {}

  def server(ctx, message, state):
    left = dict(message.aux)
    return message._replace(aux={k: v for k, v in left.items() if k != 'extra'}), left['extra'], {}

  return Layer('aux', client=Stage(client), server=Stage(server, lambda ctx: jnp.zeros(3)))


SIZE = sum(x.size for x in jax.tree.leaves(tiny.initial()))


def noise(bits):
  return privacy.distributed(1.0, 0.5, shares=7, dimension=SIZE, clients=tiny.N, bits=bits)


divided = functools.partial(equal, float(tiny.N))
GRID = {'clients': tiny.N, 'bits': 20}
STACKS = {
  'examples': (by_examples, lambda: (integers(64.0, **GRID), mask(**GRID))),
  'equal': (equal, lambda: (integers(4.0, **GRID), mask(**GRID))),
  'aux': (equal, lambda: (aux(), integers(4.0, **GRID), mask(**GRID))),
  'random_k': (equal, lambda: (random_k(0.5), integers(4.0, **GRID), mask(**GRID))),
  'adaptive clip': (
    divided,
    lambda: (
      privacy.adaptive_clip(0.4, float(tiny.N)),
      integers(4.0, dimension=SIZE, **GRID),
      mask(**GRID),
    ),
  ),
  '32 bits': (equal, lambda: (integers(4.0, clients=tiny.N), mask(clients=tiny.N))),
  'noise': (
    divided,
    lambda: (*noise(20), mask(**GRID)),
  ),
}


class Deployed:
  """A simulation's round, with each client compiled for itself and the protocol in between."""

  def __init__(self, sim):
    self.layers = secure.bare(sim.setting.layers)
    self.population, self.shape = sim.population, sim.setting.shape
    layout = engine.Layout(1, True, sim.setting.layout.mesh)
    self.setting = engine.make_setting(
      self.layers, sim.params, self.population, self.shape, layout, pool=False
    )
    self.code = secure.sealing(self.layers, self.setting.specs)
    # As the simulation's: other options move the last bits.
    self.jit = functools.partial(jax.jit, compiler_options=sim.options)

  def cast(self, state):
    seed, root = tiny.rooted(tiny.SEED)
    cast = engine.broadcast(
      seed, state.round, state.params, root=root, servers=state.servers, population=self.population
    )
    return engine.select_pass(self.layers, cast, lambda name: state.clients[name])[0]

  def message(self, cast, rows, client):
    """Returns what leaves the client sides of one client, and its new rows."""
    start, count = self.population.start[client.id], self.population.count[client.id]
    row = engine.Row(client, start, count)
    data = engine.examples(cast, row, count, self.shape, False)
    group = [x for x in self.layers if x.client is not None]
    value, rows, _, fine = engine.client_pass(
      self.layers, group, cast, self.setting.specs, client, Task(cast.params, data), rows
    )
    # As in the simulation: layers after the training may have added to aux.
    return value if self.layers.claims else tree.keep(fine, value), rows

  def run(self, state, lost):
    """Returns (the state's new parameters, server states, what was collected) of a round."""
    cast = self.jit(self.cast)(state)
    cohort = cast.cohort._replace(arrived=cast.cohort.real)
    seen, one = cast._replace(cohort=cohort), self.jit(self.message)
    session, parties = opened(self.code, tiny.N)
    values = []
    for slot in range(tiny.N):
      client = jax.tree.map(lambda x, slot=slot: x[slot], cohort)
      rows = {k: jax.tree.map(lambda x, c=client: x[c.id], v) for k, v in state.clients.items()}
      values.append(self.code.values(one(seen, rows, client)[0]))
    got = secure.collect(session, asking(parties, values, lost))
    arrived = jnp.isin(jnp.arange(tiny.N), jnp.array(got.survivors))
    cast = cast._replace(cohort=cast.cohort._replace(arrived=arrived))
    step = self.jit(
      lambda cast, sum: engine.server_pass(self.layers, cast, self.setting.specs, sum)
    )
    params, servers, metrics, _ = step(cast, self.code.message(got.total))
    np.testing.assert_array_equal(got.total, sum(values[i] for i in got.survivors))
    return params, servers, metrics, got


def specs(layers):
  """Returns the specs of layers that receive the updates of the tiny problem."""
  whole = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.int32), tiny.initial())
  like = Message(whole, jax.ShapeDtypeStruct((), jnp.float32), {})
  return {x.name: like for x in layers}


def test_the_bare_round_differs_from_the_masked_one_in_the_mask_alone():
  layers = stack('noise', GONE)
  bare = secure.bare(layers)
  assert [x.name for x in bare] == [x.name for x in layers]
  assert [x is y for x, y in zip(bare, layers, strict=True)] == [True] * (len(layers) - 1) + [False]
  kinds = lambda layer: {side: [type(x) for x in y.facts] for side, y in layer.sides.items()}
  assert kinds(bare[-1]) == kinds(layers[-1])
  assert bare.secret == layers.secret and bare.claims


@pytest.mark.parametrize(
  'layers, bits, largest, least',
  [
    ((integers(4.0, **GRID), mask(**GRID)), 32, (2**19 - 1) // tiny.N, 1),
    ((integers(4.0, clients=tiny.N), mask(clients=tiny.N)), 32, 2**22, 1),
    ((integers(4.0, clients=1000), mask(clients=1000)), 32, (2**31 - 1) // 1000, 1),
    # Nothing bounds the noise of one client but the modulus.
    ((*noise(20), mask(clients=tiny.N, bits=20)), 32, 2**19, 7),
    ((*noise(32), mask(clients=tiny.N, bits=32)), 64, 2**31, 7),
  ],
  ids=['20 bits', 'finest', '32 bits', 'noise', 'noise of 32 bits'],
)
def test_bounds_are_those_that_the_layers_state(layers, bits, largest, least):
  weigh = equal(float(tiny.N))
  layers = compose(tiny.algorithm(), round_robin(tiny.N, tiny.N), weigh, *layers)
  for form in (layers, secure.bare(layers)):
    code = secure.sealing(form, specs(form))
    assert (code.largest, code.least, code.clients) == (largest, least, tiny.N)
    session = code.session(NAME, tiny.N)
    assert (session.bits, session.size) == (bits, SIZE + 1)
    assert session.threshold == max(6, least)


def test_rounds_without_a_mask_or_without_its_bare_form():
  plain = tiny.layers(integers(4.0, **GRID))
  assert secure.bare(plain) is None
  with pytest.raises(IncompatibleStages, match='a layer must mask messages'):
    secure.sealing(plain, specs(plain))
  with pytest.raises(IncompatibleStages, match="'mask' masks messages in a simulation only"):
    secure.bare(tiny.layers(*stages.secure_sum()))


# Of ten clients seven must stay: two are lost after key sharing, one after masking, and is summed.
GONE, LOST = (3, 8), {3: Kind.MASKED, 8: Kind.MASKED, 5: Kind.CHECK}


@pytest.mark.slow
@pytest.mark.parametrize('bad', [False, True], ids=['sound', 'not finite'])
@pytest.mark.parametrize('name', STACKS)
def test_the_sum_and_the_step_are_those_of_the_simulation_bit_for_bit(name, bad):
  """Also of a client whose update is not finite: it sends zeros."""
  pop = tiny.with_client(tiny.population(), 2, x=jnp.nan) if bad else tiny.population()
  sim = tiny.build(stack(name, GONE), 'loop', pop=pop)
  state = tiny.host(sim.init(tiny.initial()))
  params, servers, metrics, got = Deployed(sim).run(state, LOST)
  wanted, noted = tiny.execute(sim, 1, pop=pop)
  assert got.survivors == tuple(i for i in range(tiny.N) if i not in GONE) and got.refused == ()
  tiny.assert_same_bits((params, servers), (wanted.params, wanted.servers))
  if not sim.claims:
    assert np.abs(tiny.vec(servers['mask'].update)).max() > 100
  assert tiny.vec(params).tolist() != tiny.vec(tiny.initial()).tolist()
  # Without a claim the simulation counts a client that is not finite among those that are lost.
  gone = len(GONE) + (bad and not sim.claims)
  assert (int(metrics['mask/recovered']), noted['mask/recovered'][0]) == (len(GONE), gone)


# What is refused.


@pytest.mark.parametrize('active', [True, False])
@pytest.mark.parametrize('at', ['first', 'middle', 'last'])
def test_an_altered_byte_is_refused_and_its_client_left_out(at, active):
  def change(kind, slot, made):
    if (kind, slot) != (Kind.MASKED, 1):
      return made
    place = {'first': 0, 'middle': len(made) // 2, 'last': len(made) - 1}[at]
    return made[:place] + bytes([made[place] ^ 1]) + made[place + 1 :]

  got, values, _ = collected(change=change, active=active)
  assert got.survivors == (0, 2, 3) and [slot for slot, _ in got.refused] == [1]
  np.testing.assert_array_equal(got.total, values[0] + values[2] + values[3])


def test_clients_refuse_keys_that_their_owner_did_not_sign():
  """What a server that exchanges keys on the way would have to do to read a client's values."""
  session, parties = opened(sealing())
  foreign = [secure.identity(Ed25519PrivateKey.generate()) for _ in range(CLIENTS)]
  other = sealing().session(NAME, CLIENTS, None, [x.public for x in foreign])
  intruders = [secure.Party(other, i, x) for i, x in enumerate(foreign)]
  sent = [x.answer(Kind.ADVERTISE, b'', None) for x in parties]
  body = b''.join(i.to_bytes(4, 'little') + x[45:] for i, x in enumerate(sent) if i)
  theirs = [x.answer(Kind.ADVERTISE, b'', None) for x in intruders]
  swapped = b''.join(i.to_bytes(4, 'little') + x[45:] for i, x in enumerate(theirs) if i)
  with pytest.raises(ProtocolError, match='must be signed by it'):
    parties[0].answer(Kind.SHARES, secagg.pack(session, Kind.KEYS, secagg.SERVER, 0, swapped), None)
  parties[0].answer(Kind.SHARES, secagg.pack(session, Kind.KEYS, secagg.SERVER, 0, body), None)


def test_what_the_protocol_signs_is_no_message_of_another_kind():
  """The key signs other messages, too: neither may pass for the other."""
  key = keys(1)[0]
  message = b'any bytes'
  signature = secure.identity(key).sign(message)
  signed = b'fedjax_mem secure message' + hashlib.sha256(message).digest()
  key.public_key().verify(signature, signed)
  with pytest.raises(InvalidSignature):
    key.public_key().verify(signature, message)


@pytest.mark.parametrize('active', [True, False])
@pytest.mark.parametrize('clients', [2, 3, 12])
def test_limits_are_the_sizes_of_whole_sessions(clients, active):
  code = sealing(clients=clients)
  session, parties = opened(code, clients, active=active)
  seen = []

  def change(kind, slot, made):
    seen.append((kind, len(made)))
    return made

  values = [code.values(drawn(i)) for i in range(clients)]
  secure.collect(session, asking(parties, values, None, change))
  for kind, size in seen:
    assert size <= secure.limit(session, kind) <= 1.1 * size
  assert {kind for kind, _ in seen} == set(rounds(session))


def test_a_message_beyond_the_limit_is_refused():
  def change(kind, slot, made):
    return made + b'\0' if (kind, slot) == (Kind.MASKED, 0) else made

  got, _, _ = collected(change=change)
  assert got.survivors == (1, 2, 3)
  ((slot, why),) = got.refused
  assert slot == 0 and 'must fit a MASKED message' in why


def test_an_answer_of_someone_who_was_not_asked_is_refused():
  session, parties = opened(sealing())
  code = sealing()
  ask = asking(parties, [code.values(drawn(i)) for i in range(CLIENTS)], {3: Kind.MASKED})
  late = lambda kind, inbox: {**ask(kind, inbox), 9: b'', **({3: b''} if kind > 2 else {})}
  got = secure.collect(session, late)
  assert got.survivors == (0, 1, 2)
  assert {slot for slot, _ in got.refused} == {3, 9}


def test_every_kind_is_answered_once_and_in_its_turn():
  session, parties = opened(sealing())
  values = [sealing().values(drawn(i)) for i in range(CLIENTS)]
  never = lambda: pytest.fail('values must not be asked for')
  inner, replies = asking(parties, values), []

  def ask(kind, inbox):
    later = [x for x in rounds(session) if x > kind]
    for other in later:
      with pytest.raises(ProtocolError, match=f'{other.name} must come in its turn'):
        parties[0].answer(other, inbox[0], never)
    answers = inner(kind, inbox)
    for slot, message in inbox.items():
      with pytest.raises(ProtocolError, match=f'{kind.name} must come in its turn, and once'):
        parties[slot].answer(kind, message, never)
    replies.append(answers)
    return answers

  secure.collect(session, ask)
  assert len(replies) == 5


def test_another_set_of_survivors_is_refused_before_the_genuine_one_and_after_it():
  """With the shares of two requests a server would see the values of whom they differ in."""
  session, parties = opened(sealing())
  inner = asking(parties, [sealing().values(drawn(i)) for i in range(CLIENTS)])
  other = secagg.request([0, 1, 2], [3], b'')
  forged = secagg.pack(session, Kind.REQUEST, secagg.SERVER, 0, other)

  def ask(kind, inbox):
    if kind != Kind.UNMASK:
      return inner(kind, inbox)
    with pytest.raises(ProtocolError, match='survivors must be those that this client signed'):
      parties[0].answer(kind, forged, None)
    answers = inner(kind, inbox)
    with pytest.raises(ProtocolError, match='UNMASK must come in its turn, and once'):
      parties[0].answer(kind, forged, None)
    return answers

  assert secure.collect(session, ask).survivors == (0, 1, 2, 3)


# What is left of a client's secrets.


def reached(root):
  """Returns all objects that can be reached from one, without those of modules and classes."""
  seen, left = {}, [root]
  while left:
    x = left.pop()
    if id(x) in seen or isinstance(x, (type, types.ModuleType, types.FunctionType)):
      continue
    seen[id(x)] = x
    left += gc.get_referents(x)
  return seen.values()


def secrets(client):
  found = [client._seed, client._box_pair.secret, client._mask_pair.secret]
  found += [*client._open_keys.values(), *client._mask_keys.values()]
  return set(found)


@pytest.mark.parametrize('how', ['answered', 'erased'])
def test_no_secret_is_left_after_the_last_answer(how):
  session, parties = opened(sealing())
  values = [sealing().values(drawn(i)) for i in range(CLIENTS)]
  inner, known = asking(parties, values), {}

  def ask(kind, inbox):
    if kind == Kind.UNMASK:
      client = parties[0]._client
      known['bytes'] = secrets(client)
      known['arrays'] = list(client._shares.values())
      known['client'] = weakref.ref(client)
      held = {x for x in reached(parties[0]) if isinstance(x, bytes)}
      assert known['bytes'] <= held and len(known['bytes']) == 3 + 2 * (CLIENTS - 1)
      assert all(x.any() for x in known['arrays']) and len(known['arrays']) == CLIENTS
      if how == 'erased':
        parties[0].erase()
        del inbox[0]
    return inner(kind, inbox)

  secure.collect(session, ask)
  assert known['client']() is None
  assert not known['bytes'] & {x for x in reached(parties[0]) if isinstance(x, bytes)}
  assert not any(x.any() for x in known['arrays'])
  for kind in rounds(session):
    with pytest.raises(ProtocolError, match='must come in its turn'):
      parties[0].answer(kind, b'', lambda: values[0])


def test_no_secret_is_shown():
  _, parties = opened(sealing())
  shown = repr(parties[0])
  assert shown == 'Party(slot=0, next=ADVERTISE)'
  for secret in secrets(parties[0]._client):
    assert secret.hex() not in shown and str(secret) not in shown
  parties[0].erase()
  assert repr(parties[0]) == 'Party(slot=0, next=None)'
