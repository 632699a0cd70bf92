"""The models of the works in PyTorch, with initial parameters from the same laws as ours.

Strided convolutions pad both sides by one pixel, where ours pad only the far side.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional


def _glorot(layers: nn.Module) -> nn.Module:
  """Returns layers with weights of Glorot's uniform law and biases of zero."""
  for layer in layers.modules():
    if isinstance(layer, nn.Conv2d | nn.Linear):
      nn.init.xavier_uniform_(layer.weight)
      nn.init.zeros_(layer.bias)
  return layers


def _cnn() -> nn.Module:
  layers = nn.Sequential(
    nn.Conv2d(1, 32, 3),
    nn.ReLU(),
    nn.Conv2d(32, 64, 3),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Linear(9216, 128),
    nn.ReLU(),
    nn.Linear(128, 10),
  )
  return _glorot(layers)


def _lenet() -> nn.Module:
  return nn.Sequential(
    nn.Conv2d(1, 6, 5),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Conv2d(6, 16, 5),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Linear(256, 120),
    nn.ReLU(),
    nn.Linear(120, 84),
    nn.ReLU(),
    nn.Linear(84, 10),
  )


def _logistic() -> nn.Module:
  layers = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
  nn.init.zeros_(layers[1].weight)
  nn.init.zeros_(layers[1].bias)
  return layers


def _mlp() -> nn.Module:
  layers = nn.Sequential(
    nn.Flatten(),
    nn.Linear(784, 200),
    nn.ReLU(),
    nn.Linear(200, 200),
    nn.ReLU(),
    nn.Linear(200, 10),
  )
  return _glorot(layers)


class Lstm(nn.Module):
  """Embedding, two LSTMs and a dense layer: logits [B, K, T] for tokens [B, T]."""

  def __init__(self, classes: int = 90, embedding: int = 8, width: int = 256):
    super().__init__()
    self.embedding = nn.Embedding(classes, embedding)
    self.lstm = nn.LSTM(embedding, width, num_layers=2, batch_first=True)
    self.logits = _glorot(nn.Linear(width, classes))
    nn.init.uniform_(self.embedding.weight, -0.05, 0.05)
    for name, p in self.lstm.named_parameters():
      if name.startswith('weight_ih'):
        nn.init.xavier_uniform_(p)
      elif name.startswith('weight_hh'):
        nn.init.orthogonal_(p)
      else:
        nn.init.zeros_(p)
        if name.startswith('bias_ih'):
          nn.init.ones_(p[width : 2 * width].data)
        else:
          p.requires_grad_(False)  # one bias is enough

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """Returns the logits, classes before time as the loss wants them."""
    return self.logits(self.lstm(self.embedding(x))[0]).transpose(1, 2)


class TransformerBlock(nn.Module):
  """Causal attention and two dense layers, each normalised before and added to its input."""

  def __init__(self, width: int, heads: int):
    super().__init__()
    self.heads = heads
    self.norm_0, self.norm_1 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
    self.qkv, self.mix = _glorot(nn.Linear(width, 3 * width)), _glorot(nn.Linear(width, width))
    self.hidden = _glorot(nn.Linear(width, 4 * width))
    self.out = _glorot(nn.Linear(4 * width, width))

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """Returns the block's output [B, T, W]."""
    batch, length, width = x.shape
    drive = self.qkv(self.norm_0(x)).view(batch, length, 3, self.heads, width // self.heads)
    query, key, value = drive.permute(2, 0, 3, 1, 4)
    mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    x = x + self.mix(mixed.transpose(1, 2).reshape(batch, length, width))
    hidden = functional.gelu(self.hidden(self.norm_1(x)), approximate='tanh')
    return x + self.out(hidden)


class Transformer(nn.Module):
  """Embeddings, blocks, a normalisation and a dense layer: logits [B, K, T] for tokens [B, T]."""

  def __init__(
    self, length: int = 128, classes: int = 90, width: int = 128, heads: int = 4, blocks: int = 2
  ):
    super().__init__()
    self.embedding = nn.Embedding(classes, width)
    self.positions = nn.Parameter(torch.empty(length, width))
    nn.init.normal_(self.embedding.weight, std=0.02)
    nn.init.normal_(self.positions, std=0.02)
    self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(blocks)))
    self.norm = nn.LayerNorm(width, eps=1e-6)
    self.logits = _glorot(nn.Linear(width, classes))

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """Returns the logits, classes before time as the loss wants them."""
    return self.logits(self.norm(self.blocks(self.embedding(x) + self.positions))).transpose(1, 2)


def _conv(inputs: int, outputs: int, window: int, stride: int = 1) -> nn.Conv2d:
  layer = nn.Conv2d(inputs, outputs, window, stride, padding=window // 2, bias=False)
  nn.init.kaiming_normal_(layer.weight)
  return layer


class ResNetBlock(nn.Module):
  """Two 3x3 convolutions beside a shortcut, with group normalisation."""

  def __init__(self, inputs: int, outputs: int, stride: int, groups: int):
    super().__init__()
    self.body = nn.Sequential(
      _conv(inputs, outputs, 3, stride),
      nn.GroupNorm(groups, outputs),
      nn.ReLU(inplace=True),
      _conv(outputs, outputs, 3),
      nn.GroupNorm(groups, outputs),
    )
    self.shortcut: nn.Module = nn.Identity()
    if stride > 1 or inputs != outputs:
      self.shortcut = nn.Sequential(
        _conv(inputs, outputs, 1, stride), nn.GroupNorm(groups, outputs)
      )

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """Returns the block's output [B, O, H / stride, W / stride]."""
    return functional.relu(self.body(x) + self.shortcut(x), inplace=True)


def _resnet(
  classes: int = 10,
  channels: int = 3,
  width: int = 64,
  blocks: tuple[int, ...] = (2, 2, 2, 2),
  groups: int = 2,
) -> nn.Module:
  layers = [_conv(channels, width, 3), nn.GroupNorm(groups, width), nn.ReLU(inplace=True)]
  inputs = width
  for stage, count in enumerate(blocks):
    for block in range(count):
      stride = 2 if stage and not block else 1
      layers.append(ResNetBlock(inputs, width * 2**stage, stride, groups))
      inputs = width * 2**stage
  return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


MODELS = {
  'char_lstm': Lstm,
  'cnn': _cnn,
  'lenet': _lenet,
  'logistic': _logistic,
  'mlp': _mlp,
  'resnet_gn': _resnet,
  'transformer': Transformer,
}


def inputs(work: dict[str, Any], x: torch.Tensor) -> torch.Tensor:
  """Returns stored examples as a model takes them: tokens, or images [B, C, H, W] in [0, 1]."""
  if work.get('data', '').startswith('tokens'):
    return x.to(torch.int64)
  images = x.to(torch.float32).div_(255)
  if x.ndim == 3:
    return images[:, None]
  return images.permute(0, 3, 1, 2).contiguous()
