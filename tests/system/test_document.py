"""The user's document: its complete example and its tables of defaults."""

import contextlib
import dataclasses
import io
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_mem as fm
from fedjax_mem import data, federated, models
from fedjax_mem.federated import config as configs

TABLES = """
### PrivacyConfig
| `epsilon` | float | 1.0 | Privacy budget |
| `delta` | float | 1e-5 | Privacy breach probability |
| `max_grad_norm` | float | 1.0 | Gradient clipping threshold |
| `noise_multiplier` | float | None | Noise scale (auto-computed) |
| `mechanism` | str | "gaussian" | Noise mechanism |
### ClientConfig
| `client_id` | str | required | Unique client identifier |
| `local_epochs` | int | 3 | Local training epochs |
| `batch_size` | int | 32 | Local batch size |
| `learning_rate` | float | 1e-4 | Local learning rate |
| `privacy_config` | PrivacyConfig | None | Privacy settings |
| `compression_config` | CompressionConfig | None | Compression settings |
### ServerConfig
| `min_clients` | int | 3 | Minimum clients per round |
| `max_clients` | int | 100 | Maximum clients per round |
| `rounds` | int | 10 | Number of training rounds |
| `aggregation` | AggregationStrategy | FEDERATED_AVERAGING | Aggregation method |
| `selection_strategy` | str | "random" | Client selection method |
### CompressionConfig
| `method` | str | "top_k" | Compression method |
| `compression_ratio` | float | 0.1 | Ratio of values to keep |
| `quantization_bits` | int | 8 | Bits for quantization |
"""

EXAMPLE = """
import asyncio
from fedjax_mem.federated import (
    FederatedServer,
    FederatedClient,
    ServerConfig,
    ClientConfig,
    PrivacyConfig,
    CompressionConfig,
    AggregationStrategy,
)

async def run_federated_training():
    # Privacy configuration
    privacy = PrivacyConfig(
        epsilon=2.0,
        delta=1e-5,
        max_grad_norm=1.0,
    )

    # Compression configuration
    compression = CompressionConfig(
        method="top_k",
        compression_ratio=0.1,
    )

    # Server configuration
    server_config = ServerConfig(
        min_clients=3,
        max_clients=10,
        rounds=5,
        aggregation=AggregationStrategy.FEDERATED_AVERAGING,
    )

    # Initialize server
    server = FederatedServer(
        config=server_config,
        global_model=base_model,
    )

    # Create clients
    clients = []
    for i in range(5):
        client_config = ClientConfig(
            client_id=f"device-{i}",
            local_epochs=2,
            batch_size=16,
            privacy_config=privacy,
            compression_config=compression,
        )

        client = FederatedClient(
            config=client_config,
            model=base_model.copy(),
            data_loader=get_local_data(i),
        )
        clients.append(client)

    # Run federated training
    for round in range(server_config.rounds):
        print(f"Round {round + 1}/{server_config.rounds}")

        # Select clients for this round
        selected = server.select_clients(clients)

        # Train locally on each client
        updates = []
        for client in selected:
            update = await client.train_round()
            updates.append(update)

        # Aggregate on server
        await server.aggregate(updates)

        # Broadcast updated model
        for client in clients:
            client.receive_global_model(server.get_global_model())

        print(f"  Participants: {len(selected)}")
        print(f"  Privacy spent: ε={server.privacy_accountant.epsilon:.2f}")

    # Get final model
    final_model = server.get_global_model()
    return final_model

# Run
model = asyncio.run(run_federated_training())
"""


@pytest.fixture(scope='module')
def digits():
  return data.load('digits', partition='iid', num_clients=5, seed=0)


@pytest.fixture(scope='module')
def given(digits):
  def local(i):
    rows = digits.rows(i)
    batch = digits.preprocess({name: x[rows] for name, x in digits.arrays.items()})
    return batch['x'], batch['y']

  return {
    'base_model': models.build('logistic', digits.input_shape, digits.num_classes),
    'get_local_data': local,
  }


def run_script(script, given):
  said = io.StringIO()
  names = dict(given)
  with contextlib.redirect_stdout(said):
    exec(script, names)
  return names['model'], said.getvalue()


def accuracy(model, digits):
  batch = digits.preprocess(digits.test)
  return model.evaluate(batch['x'], batch['y'])['accuracy']


def test_the_complete_example_runs_as_written(given, digits):
  model, said = run_script(EXAMPLE, given)
  assert said.count('Participants: 5') == 5
  spent = [float(x) for x in re.findall(r'ε=([0-9.]+)', said)]
  assert spent == sorted(spent) and spent[0] > 0 and spent[-1] <= 2.0
  leaves = jax.tree.leaves(model.params)
  assert [x.shape for x in leaves] == [(10,), (64, 10)]
  assert all(np.isfinite(x).all() for x in leaves)
  # At a learning rate of 1e-4 and this noise it learns little, whatever it is.
  print(f'accuracy {accuracy(model, digits):.3f}')


@pytest.mark.slow
@pytest.mark.parametrize('compressed', [True, False])
def test_the_same_script_without_privacy_learns(given, digits, compressed):
  script = EXAMPLE.replace('privacy_config=privacy,', 'learning_rate=0.1,')
  script = script.replace('rounds=5', 'rounds=30')
  if not compressed:
    script = script.replace('compression_config=compression,', '')
  model, said = run_script(script, given)
  assert said.count('ε=inf') == 30
  assert accuracy(model, digits) >= 0.90


def fields():
  kind = None
  for line in TABLES.strip().splitlines():
    if line.startswith('#'):
      kind = line[4:]
    else:
      name, type_, default, doc = (x.strip() for x in line.strip('|').split('|'))
      yield pytest.param(kind, name[1:-1], type_, default, doc, id=f'{kind}.{name[1:-1]}')


@pytest.mark.parametrize('kind,name,type_,default,doc', list(fields()))
def test_the_tables_of_defaults(kind, name, type_, default, doc):
  cls = getattr(federated, kind)
  field = {x.name: x for x in dataclasses.fields(cls)}[name]
  said = {row[0]: row for row in configs.describe(cls)}[name]
  assert said[1].removesuffix(' | None').split('.')[-1] == type_
  assert field.metadata['doc'] == doc
  if default == 'required':
    assert field.default is dataclasses.MISSING and said[2] == 'required'
  elif kind == 'ServerConfig' and name == 'aggregation':
    assert field.default is federated.AggregationStrategy[default]
  else:
    assert repr(field.default) == repr(eval(default)) and type(field.default) is type(eval(default))


def test_every_documented_field_is_in_the_order_of_the_tables():
  for kind in ('PrivacyConfig', 'ClientConfig', 'ServerConfig', 'CompressionConfig'):
    table = [x.values[1] for x in fields() if x.values[0] == kind]
    have = [x.name for x in dataclasses.fields(getattr(federated, kind))]
    assert have[: len(table)] == table


@pytest.mark.slow
@pytest.mark.parametrize('method', ['random_k', 'quantization'])
def test_the_other_methods_of_compression(method):
  compressor = federated.ModelCompressor(federated.CompressionConfig(method=method))
  gradients = {'w': jnp.linspace(-1.0, 1.0, 1000)}
  back = compressor.decompress(compressor.compress(gradients))['w']
  if method == 'quantization':
    assert compressor.get_ratio() < 0.3
    assert np.abs(back - gradients['w']).max() <= 2 / 254 + 1e-6
  else:
    assert compressor.get_ratio() < 0.12 and (back != 0).sum() <= 100


def test_the_package_is_reached_from_the_top():
  assert fm.federated is federated
