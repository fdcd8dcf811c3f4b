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


class LayerNorm2d(nn.LayerNorm):
  def forward(self, x):
    return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class MoveChannels(nn.Module):
  def __init__(self, source, target):
    super().__init__()
    self.source, self.target = source, target

  def forward(self, x):
    return x.movedim(self.source, self.target)


class ConvNeXtBlock(nn.Module):
  def __init__(self, features):
    super().__init__()
    self.block = nn.Sequential(
      nn.Conv2d(features, features, 7, padding=3, groups=features),
      MoveChannels(1, -1),
      nn.LayerNorm(features, eps=1e-6),
      nn.Linear(features, 4 * features),
      nn.GELU(),
      nn.Linear(4 * features, features),
      MoveChannels(-1, 1),
    )
    self.layer_scale = nn.Parameter(torch.full((features, 1, 1), 1e-6))

  def forward(self, x):
    return x + self.layer_scale * self.block(x)


class ConvNeXt(nn.Module):
  def __init__(self, sizes=(3, 3, 9, 3), width=96):
    super().__init__()
    layers = [nn.Sequential(nn.Conv2d(3, width, 4, 4), LayerNorm2d(width, eps=1e-6))]
    for stage, blocks in enumerate(sizes):
      if stage:
        layers.append(nn.Sequential(LayerNorm2d(width, eps=1e-6), nn.Conv2d(width, 2 * width, 2, 2)))
        width *= 2
      layers.append(nn.Sequential(*(ConvNeXtBlock(width) for _ in range(blocks))))
    self.features = nn.Sequential(*layers)
    self.classifier = nn.Sequential(LayerNorm2d(width, eps=1e-6), nn.Flatten(1), nn.Linear(width, 1000))

  def forward_features(self, x):
    return self.classifier[:2](self.features(x).mean((2, 3), keepdim=True))


class EncoderLayer(nn.Module):
  def __init__(self, width):
    super().__init__()
    self.ln_1 = nn.LayerNorm(width, eps=1e-6)
    self.self_attention = nn.MultiheadAttention(width, width // 64, batch_first=True)
    self.ln_2 = nn.LayerNorm(width, eps=1e-6)
    dropout = nn.Dropout(0.0)
    self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), dropout, nn.Linear(4 * width, width), dropout)

  def forward(self, x):
    y = self.ln_1(x)
    x = x + self.self_attention(y, y, y, need_weights=False)[0]
    return x + self.mlp(self.ln_2(x))


class VisionTransformer(nn.Module):
  def __init__(self, width=768, image_size=224, depth=12):
    super().__init__()
    self.conv_proj = nn.Conv2d(3, width, 16, 16)
    self.class_token = nn.Parameter(torch.zeros(1, 1, width))
    self.encoder = nn.Module()
    self.encoder.pos_embedding = nn.Parameter(torch.zeros(1, (image_size // 16) ** 2 + 1, width))
    self.encoder.layers = nn.Sequential()
    for i in range(depth):
      self.encoder.layers.add_module(f'encoder_layer_{i}', EncoderLayer(width))
    self.encoder.ln = nn.LayerNorm(width, eps=1e-6)
    self.heads = nn.Sequential()
    self.heads.add_module('head', nn.Linear(width, 1000))

  def forward_features(self, x):
    x = self.conv_proj(x).flatten(2).movedim(1, -1)
    x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1) + self.encoder.pos_embedding
    return self.encoder.ln(self.encoder.layers(x))[:, 0]


class ConvNet(nn.Module):
  def __init__(self):
    super().__init__()
    self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
    self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
    self.pool = nn.MaxPool2d(2)

  def forward_features(self, x):
    x = self.pool(self.conv1(x).relu())
    # Our maps have channels last.
    return self.pool(self.conv2(x).relu()).movedim(1, -1).flatten(1)


class CelebACNN(nn.Module):
  """As the authors of FAMO have it, under names of ours."""

  def __init__(self):
    super().__init__()
    before, self.order = 3, []
    for name, width in (
      ('1_1', 64),
      ('2_1', 128),
      ('2_2', 128),
      ('3_1', 256),
      ('3_2', 256),
      ('4_1', 512),
      ('4_2', 512),
    ):
      self.add_module(f'conv{name}', nn.Conv2d(before, width, 3, padding=1, bias=False))
      self.add_module(f'bn{name}', nn.BatchNorm2d(width))
      self.order.append((f'conv{name}', f'bn{name}', name in ('1_1', '2_2', '3_2')))
      before = width
    for i in (1, 2):
      self.add_module(f'dense{i}', nn.Linear(512, 512, bias=False))
      self.add_module(f'bn5_{i}', nn.BatchNorm1d(512))
    self.pool = nn.MaxPool2d(2)

  def forward_features(self, x):
    for conv, norm, pooled in self.order:
      x = getattr(self, norm)(getattr(self, conv)(x)).relu()
      x = self.pool(x) if pooled else x
    x = x.mean(dim=(2, 3))
    for i in (1, 2):
      x = getattr(self, f'bn5_{i}')(getattr(self, f'dense{i}')(x)).relu()
    return x


celeba_cnn = CelebACNN
mobilenet_v2 = MobileNetV2
convnext_tiny = ConvNeXt
convnet = ConvNet
vit_b16 = VisionTransformer


def vit_s16(**kwargs):
  return VisionTransformer(384, **kwargs)
