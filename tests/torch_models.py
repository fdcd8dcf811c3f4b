"""Reference networks in PyTorch with torchvision's layers and names, written out because torchvision is no dependency.

`forward_features(images)` is what its classifier reads.
"""

import torch
from torch import nn


def randomized(network: nn.Module) -> nn.Module:
  """In evaluation mode, with every parameter and buffer drawn anew kernels such that maps keep a moderate size."""
  generator = torch.Generator().manual_seed(0)
  for name, value in network.state_dict().items():
    if name.endswith('num_batches_tracked'):
      continue
    noise = torch.rand(value.shape, generator=generator) - 0.5
    if name.endswith('running_var') or (value.ndim == 1 and name.endswith('weight')):
      value.copy_(1 + noise)
    else:
      value.copy_(noise * (12 / max(1, value[0].numel())) ** 0.5 if value.ndim > 1 else noise)
  return network.eval()


class BasicBlock(nn.Module):
  expansion = 1

  def __init__(self, inputs, features, stride):
    super().__init__()
    self.conv1 = nn.Conv2d(inputs, features, 3, stride, 1, bias=False)
    self.bn1 = nn.BatchNorm2d(features)
    self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
    self.bn2 = nn.BatchNorm2d(features)
    self.downsample = projection(inputs, features, stride)

  def forward(self, x):
    y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
    return (y + (x if self.downsample is None else self.downsample(x))).relu()


class Bottleneck(nn.Module):
  expansion = 4

  def __init__(self, inputs, features, stride):
    super().__init__()
    self.conv1 = nn.Conv2d(inputs, features, 1, bias=False)
    self.bn1 = nn.BatchNorm2d(features)
    self.conv2 = nn.Conv2d(features, features, 3, stride, 1, bias=False)
    self.bn2 = nn.BatchNorm2d(features)
    self.conv3 = nn.Conv2d(features, 4 * features, 1, bias=False)
    self.bn3 = nn.BatchNorm2d(4 * features)
    self.downsample = projection(inputs, 4 * features, stride)

  def forward(self, x):
    y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
    y = self.bn3(self.conv3(y))
    return (y + (x if self.downsample is None else self.downsample(x))).relu()


def projection(inputs, features, stride):
  if inputs == features and stride == 1:
    return None
  return nn.Sequential(nn.Conv2d(inputs, features, 1, stride, bias=False), nn.BatchNorm2d(features))


class ResNet(nn.Module):
  def __init__(self, block, sizes, width=64):
    super().__init__()
    self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
    self.bn1 = nn.BatchNorm2d(width)
    inputs = width
    for stage, blocks in enumerate(sizes):
      features, layers = width * 2**stage, []
      for i in range(blocks):
        layers.append(block(inputs, features, 2 if stage and i == 0 else 1))
        inputs = features * block.expansion
      setattr(self, f'layer{stage + 1}', nn.Sequential(*layers))
    self.fc = nn.Linear(inputs, 1000)

  def forward_features(self, x):
    x = nn.functional.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
    return self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3))


def resnet18():
  return ResNet(BasicBlock, (2, 2, 2, 2))


def resnet34():
  return ResNet(BasicBlock, (3, 4, 6, 3))


def resnet50():
  return ResNet(Bottleneck, (3, 4, 6, 3))


def conv_norm(inputs, features, size=1, stride=1, groups=1):
  conv = nn.Conv2d(inputs, features, size, stride, size // 2, groups=groups, bias=False)
  return nn.Sequential(conv, nn.BatchNorm2d(features), nn.ReLU6())


class InvertedResidual(nn.Module):
  def __init__(self, inputs, features, stride, expansion):
    super().__init__()
    hidden, self.shortcut = inputs * expansion, stride == 1 and inputs == features
    expand = [conv_norm(inputs, hidden)] if expansion > 1 else []
    self.conv = nn.Sequential(
      *expand,
      conv_norm(hidden, hidden, 3, stride, hidden),
      nn.Conv2d(hidden, features, 1, bias=False),
      nn.BatchNorm2d(features),
    )

  def forward(self, x):
    return x + self.conv(x) if self.shortcut else self.conv(x)


class MobileNetV2(nn.Module):
  def __init__(self):
    super().__init__()
    layers, inputs = [conv_norm(3, 32, 3, 2)], 32
    settings = (
      (1, 16, 1, 1),
      (6, 24, 2, 2),
      (6, 32, 3, 2),
      (6, 64, 4, 2),
      (6, 96, 3, 1),
      (6, 160, 3, 2),
      (6, 320, 1, 1),
    )
    for expansion, features, blocks, stride in settings:
      for i in range(blocks):
        layers.append(InvertedResidual(inputs, features, stride if i == 0 else 1, expansion))
        inputs = features
    self.features = nn.Sequential(*layers, conv_norm(320, 1280))
    self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(1280, 1000))

  def forward_features(self, x):
    return self.features(x).mean((2, 3))


mobilenet_v2 = MobileNetV2
