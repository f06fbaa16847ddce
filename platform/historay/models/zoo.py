"""Networks by name, always from random weights, with stems and heads that fit small tiles."""

import difflib
from typing import Any

from torch import nn

from historay.errors import ConfigError
from historay.models.equivariant import P4mResNet
from historay.models.small_cnn import SmallCNN

_VGG = ("vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn")
_RESNET = ("resnet18", "resnet34", "resnet50", "resnet101")
_DENSENET = ("densenet121", "densenet169", "densenet201")
_EFFICIENTNET = ("efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "efficientnet_b3", "efficientnet_v2_s")
_MOBILENET = ("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large")
_CONVNEXT = ("convnext_tiny", "convnext_small", "convnext_base")
ARCHITECTURES = (
    "small_cnn",
    "p4m_resnet",
    *_VGG,
    *_RESNET,
    "inception_v3",
    *_DENSENET,
    *_EFFICIENTNET,
    *_MOBILENET,
    *_CONVNEXT,
)

_MIN_PX = 32  # five halvings leave one pixel
_INCEPTION_MIN_PX = 75  # below, its last pooling has nothing left
_INCEPTION_AUX_MIN_PX = 299  # below, its auxiliary head hasn't either
_FULL_STEM_PX = 96  # from here on the stem of stride 4 that ImageNet's 224 px ask for leaves enough


def build_model(architecture: str, num_classes: int, input_px: int, dropout: float = 0.0) -> nn.Module:
    """Builds a network with random weights that maps (B, 3, input_px, input_px) to logits (B, K).

    Below 96 px, ResNets and DenseNets get the stem of their CIFAR versions (3 x 3, stride 1, no pooling). VGGs end in a
    mean over space and one linear layer instead of the 120 million weights that fit 224 px only. In training mode,
    inception_v3 returns (logits, auxiliary logits) from 299 px on. ``dropout`` acts before the last layer.

    Raises ConfigError on an unknown name or too small an input.
    """
    if architecture not in ARCHITECTURES:
        near = difflib.get_close_matches(architecture, ARCHITECTURES, n=3) or ARCHITECTURES
        raise ConfigError(f"unknown architecture {architecture!r}; did you mean {' or '.join(near)}?")
    smallest = _INCEPTION_MIN_PX if architecture == "inception_v3" else _MIN_PX
    if input_px < smallest:
        raise ConfigError(f"input_px={input_px} is too small for {architecture}, which needs at least {smallest}; set input_px")
    if architecture == "small_cnn":
        return SmallCNN(num_classes, dropout)
    if architecture == "p4m_resnet":
        return P4mResNet(num_classes, input_px, dropout)
    if architecture == "inception_v3":
        return _inception(num_classes, input_px, dropout)
    return _HEADS[architecture](architecture, num_classes, input_px, dropout)


def _new(architecture: str, **arguments: Any) -> Any:
    import torchvision.models  # here, since it takes three seconds of CPU of every process that builds none of these

    return getattr(torchvision.models, architecture)(weights=None, **arguments)


def _inception(num_classes: int, input_px: int, dropout: float) -> nn.Module:
    aux = input_px >= _INCEPTION_AUX_MIN_PX
    model: nn.Module = _new(
        "inception_v3", num_classes=num_classes, aux_logits=aux, init_weights=True, dropout=dropout, transform_input=False
    )
    return model


def _vgg(architecture: str, num_classes: int, _: int, dropout: float) -> nn.Module:
    model: nn.Module = _new(architecture)
    model.avgpool = nn.AdaptiveAvgPool2d(1)
    model.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(512, num_classes))
    return model


def _resnet(architecture: str, num_classes: int, input_px: int, dropout: float) -> nn.Module:
    model = _new(architecture)
    if input_px < _FULL_STEM_PX:
        model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    model.fc = nn.Sequential(nn.Dropout(dropout), nn.Linear(model.fc.in_features, num_classes))
    return model  # type: ignore[no-any-return]


def _densenet(architecture: str, num_classes: int, input_px: int, dropout: float) -> nn.Module:
    model = _new(architecture)
    if input_px < _FULL_STEM_PX:
        model.features.conv0 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(model.features.conv0.weight)
        model.features.pool0 = nn.Identity()
    model.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(model.classifier.in_features, num_classes))
    return model  # type: ignore[no-any-return]


def _replaced_head(architecture: str, num_classes: int, _: int, dropout: float) -> nn.Module:
    """EfficientNet, MobileNet and ConvNeXt pool over space themselves; only the last layer and the dropout are ours."""
    model = _new(architecture)
    last: nn.Linear = model.classifier[-1]
    for position, layer in enumerate(model.classifier):
        if isinstance(layer, nn.Dropout):
            model.classifier[position] = nn.Identity()
    model.classifier[-1] = nn.Sequential(nn.Dropout(dropout), nn.Linear(last.in_features, num_classes))
    return model  # type: ignore[no-any-return]


_HEADS = {
    **dict.fromkeys(_VGG, _vgg),
    **dict.fromkeys(_RESNET, _resnet),
    **dict.fromkeys(_DENSENET, _densenet),
    **dict.fromkeys((*_EFFICIENTNET, *_MOBILENET, *_CONVNEXT), _replaced_head),
}
