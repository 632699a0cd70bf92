"""Federated learning as objects: servers, clients, privacy and compression.

The objects are an interface without mathematics of its own: they call the sides of the same layers
that the engine compiles into whole rounds. `simulate_federation` runs them by the compiled engine.
"""

from fedjax_mem.federated.budget import PrivacyBudgetExceeded
from fedjax_mem.federated.client import FederatedClient
from fedjax_mem.federated.compression import Compressed, ModelCompressor
from fedjax_mem.federated.config import (
  AggregationStrategy,
  ClientConfig,
  CompressionConfig,
  NotEnoughClients,
  PrivacyConfig,
  ServerConfig,
)
from fedjax_mem.federated.identity import SigningKey, Unauthentic
from fedjax_mem.federated.model import FederatedModel, as_model
from fedjax_mem.federated.privacy import DifferentialPrivacy, PrivacyAccountant
from fedjax_mem.federated.server import FederatedServer, RoundReport
from fedjax_mem.federated.simulate import SimulationResult, simulate_federation
from fedjax_mem.federated.update import FederatedUpdate, Metadata
from fedjax_mem.secagg.aggregator import SecureAggregator

__all__ = (
  'AggregationStrategy',
  'ClientConfig',
  'Compressed',
  'CompressionConfig',
  'DifferentialPrivacy',
  'FederatedClient',
  'FederatedModel',
  'FederatedServer',
  'FederatedUpdate',
  'Metadata',
  'ModelCompressor',
  'NotEnoughClients',
  'PrivacyAccountant',
  'PrivacyBudgetExceeded',
  'PrivacyConfig',
  'RoundReport',
  'SecureAggregator',
  'ServerConfig',
  'SigningKey',
  'SimulationResult',
  'Unauthentic',
  'as_model',
  'simulate_federation',
)
