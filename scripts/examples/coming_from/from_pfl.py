"""FedAvg on digits, 20 clients, in pfl-research 0.6.0 (PyTorch 2.13, dp-accounting < 0.6)."""

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Weighted
from pfl.model.pytorch import PyTorchModel
from sklearn.datasets import load_digits

np.random.seed(0)  # pfl seeds from NumPy's state
x, y = load_digits(return_X_y=True)
x, y = torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)
order = np.random.default_rng(0).permutation(len(x))
train, test = order[:1500], order[1500:]
parts = np.array_split(train, 20)


class Logistic(torch.nn.Linear):
  """A model with the loss and the metrics that pfl asks for."""

  def loss(self, x, y):
    """Returns the mean loss of a batch."""
    return torch.nn.functional.cross_entropy(self(x), y)

  @torch.no_grad()
  def metrics(self, x, y):
    """Returns the accuracy, a sum and its weight."""
    return {'accuracy': Weighted(int((self(x).argmax(1) == y).sum()), len(y))}


net = Logistic(64, 10)
for values in net.parameters():
  torch.nn.init.zeros_(values)
sampler = get_user_sampler('random', list(range(20)))
data = FederatedDataset(lambda i: Dataset((x[parts[i]], y[parts[i]]), user_id=str(i)), sampler)
model = PyTorchModel(net, torch.optim.SGD, torch.optim.SGD(net.parameters(), lr=1.0))
FederatedAveraging().run(
  NNAlgorithmParams(
    central_num_iterations=10,
    evaluation_frequency=10,
    train_cohort_size=5,
    val_cohort_size=None,
  ),
  SimulatedBackend(data, data, [WeightByDatapoints()]),
  model,
  NNTrainHyperParams(local_batch_size=20, local_num_epochs=1, local_learning_rate=0.5),
  send_metrics_to_platform=False,
)
print('accuracy', round(float((net(x[test]).argmax(1) == y[test]).float().mean()), 3))
