"""The snippets of the user's document, letter for letter, run as they stand there."""

import ast
import asyncio
import contextlib
import inspect
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mem import models
from fedjax_mem.federated import (
  ClientConfig,
  CompressionConfig,
  FederatedClient,
  NotEnoughClients,
  PrivacyBudgetExceeded,
  PrivacyConfig,
  as_model,
)

pytestmark = pytest.mark.slow

PRIVACY = """
from fedjax_mem.federated import DifferentialPrivacy, PrivacyConfig

config = PrivacyConfig(
    epsilon=1.0,              # Privacy budget (lower = more private)
    delta=1e-5,               # Probability of privacy breach
    max_grad_norm=1.0,        # Gradient clipping threshold
    noise_multiplier=None,    # Auto-computed from epsilon/delta
)

dp = DifferentialPrivacy(config)

# Apply to gradients
private_gradients = dp.apply(gradients)

# Check privacy budget
remaining = dp.get_privacy_spent()
print(f"Privacy spent: ε={remaining.epsilon:.2f}, δ={remaining.delta:.2e}")
"""

CLIENT = """
from fedjax_mem.federated import FederatedClient, ClientConfig

config = ClientConfig(
    client_id="device-123",
    local_epochs=3,
    batch_size=32,
    learning_rate=1e-4,
    privacy_config=privacy_config,
    compression_config=compression_config,
)

client = FederatedClient(
    config=config,
    model=model,
    data_loader=local_data,
)

# Train on local data
local_update = await client.train_round()

# Update includes:
# - Compressed gradient updates
# - Privacy-preserved weights
# - Training metadata
"""

SERVER = """
from fedjax_mem.federated import FederatedServer, ServerConfig, AggregationStrategy

config = ServerConfig(
    min_clients=3,
    max_clients=100,
    rounds=10,
    aggregation=AggregationStrategy.FEDERATED_AVERAGING,
    selection_strategy="random",  # or "importance", "contribution"
)

server = FederatedServer(
    config=config,
    global_model=model,
)

# Run training round
await server.run_round()

# Get aggregated model
updated_model = server.get_global_model()
"""

COMPRESSION = """
from fedjax_mem.federated import ModelCompressor, CompressionConfig

config = CompressionConfig(
    method="top_k",           # "top_k", "random_k", "quantization"
    compression_ratio=0.1,    # Keep top 10% of gradients
    quantization_bits=8,      # For quantization method
)

compressor = ModelCompressor(config)

# Compress before sending
compressed = compressor.compress(gradients)
print(f"Compression ratio: {compressor.get_ratio():.1%}")

# Decompress on server
decompressed = compressor.decompress(compressed)
"""

SECURE = """
from fedjax_mem.federated import SecureAggregator

aggregator = SecureAggregator(
    num_clients=10,
    threshold=6,  # Minimum clients needed
)

# Each client encrypts their update
encrypted_updates = [aggregator.encrypt(u, client_id) for u, client_id in updates]

# Server aggregates without seeing individual updates
aggregated = aggregator.secure_aggregate(encrypted_updates)
"""

ACCOUNTING = """
from fedjax_mem.federated import PrivacyAccountant

accountant = PrivacyAccountant(
    target_epsilon=5.0,
    target_delta=1e-5,
)

for round in range(num_rounds):
    # Train round
    ...

    # Update accounting
    accountant.step(noise_multiplier, sample_rate)

    if accountant.is_budget_exhausted():
        print("Privacy budget exhausted!")
        break

print(f"Total privacy: ε={accountant.epsilon:.2f}")
"""


RNG = np.random.default_rng(0)
DATA = RNG.normal(size=(40, 4)).astype(np.float32), RNG.integers(0, 3, 40)
MODEL = models.build('logistic', (4,), 3)
MODEL_DIGEST = as_model(MODEL).digest
GRADIENTS = {'w': jnp.linspace(-1.0, 1.0, 600).reshape(30, 20), 'b': [jnp.ones(3)]}


def run(snippet, **names):
  """Runs a snippet, `await` at its top level included; returns (its names, what it printed)."""
  code = compile(snippet, 'snippet', 'exec', flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
  said = io.StringIO()

  async def go():
    done = eval(code, names)
    if inspect.isawaitable(done):
      await done

  with contextlib.redirect_stdout(said):
    asyncio.run(go())
  return names, said.getvalue()


def test_privacy():
  names, said = run(PRIVACY, gradients=GRADIENTS)
  assert said == 'Privacy spent: ε=1.00, δ=1.00e-05\n'
  assert jax.tree.map(jnp.shape, names['private_gradients']) == jax.tree.map(jnp.shape, GRADIENTS)
  assert names['remaining'].level == 'Strong'
  with pytest.raises(PrivacyBudgetExceeded):
    names['dp'].apply(GRADIENTS)
  assert names['dp'].get_privacy_spent() == names['remaining']


def test_client():
  names, _ = run(
    CLIENT,
    model=MODEL,
    local_data=DATA,
    privacy_config=PrivacyConfig(),
    compression_config=CompressionConfig(),
  )
  update = names['local_update']
  assert update.metadata.bytes == len(update.data) and update.metadata.num_examples == 40
  kept = sum(int((x != 0).sum()) for x in (update.values['logits'][n] for n in ('kernel', 'bias')))
  assert kept == 2  # a tenth of 15 values, rounded


def test_server():
  with pytest.raises(NotEnoughClients, match='registered'):
    run(SERVER, model=MODEL)
  three = [FederatedClient(ClientConfig(client_id=f'device-{i}'), MODEL, DATA) for i in range(3)]
  with_clients = SERVER.replace('# Run', 'for client in three:\n    server.register(client)\n# Run')
  names, _ = run(with_clients, model=MODEL, three=three)
  assert names['server'].reports[0].participants
  assert names['updated_model'].digest == three[0].model.digest != MODEL_DIGEST


def test_compression():
  gradients = {'w': jnp.asarray(RNG.normal(size=(20, 50)), jnp.float32)}
  names, said = run(COMPRESSION, gradients=gradients)
  assert said.startswith('Compression ratio: 1') and said.endswith('%\n')
  x, back = (np.asarray(t['w']).ravel() for t in (gradients, names['decompressed']))
  want = np.zeros_like(x)
  kept = np.argsort(-np.abs(x))[:100]
  want[kept] = x[kept]
  np.testing.assert_array_equal(back, want)


def test_secure():
  updates = [({'w': np.full(3, i, np.float32)}, f'c{i}') for i in range(10)]
  names, _ = run(SECURE, updates=updates)
  np.testing.assert_allclose(names['aggregated']['w'], 4.5, atol=1e-6)


def test_accounting():
  names, said = run(ACCOUNTING, num_rounds=400, noise_multiplier=0.8, sample_rate=0.1)
  assert said.startswith('Privacy budget exhausted!\nTotal privacy: ε=4.9')  # and not above 5
  assert 1 < names['round'] < 399
  before = names['accountant'].epsilon
  names['accountant'].step(2.0, 0.2)
  assert before < names['accountant'].epsilon < 8
