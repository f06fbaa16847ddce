"""A residual network over the group p4m: turning or flipping a tile by the square's 8 symmetries cannot change its logits.

Cohen and Welling 2016; on histology Veeling et al. 2018. A feature is a field: one map for each of the 8 elements of D4,
which a turn of the tile turns and permutes. A group convolution applies one learnt filter in its 8 poses, so that a network
has an eighth of the parameters of a plain one as wide, and needs no augmentation by D4. For inference it folds into plain
convolutions. Elements are numbered as by ``apply_d4``: element e is e % 4 quarter turns after a flip if e is 4 or more.

Suffixes: B tiles, C fields, G the 8 elements, H rows, W columns. A tensor of fields is (B, G * C, H, W), channels last.
"""

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

_ORDER = 8  # of the group
_FIELDS = (8, 16, 32)  # 64, 128 and 256 channels, at half, quarter and eighth of the tile's side
_NUM_BLOCKS = (1, 2, 2)
_POOLED_FIELDS = 64
_STEM_KERNEL = 6


class GroupConv(nn.Module):
    """A convolution from fields (or an image) to fields, without bias; its filters are made in one gather from the weights.

    An odd kernel keeps the side, with stride 1. An even one, with stride 2, halves an even side and treats both ends
    alike, which an odd one cannot: that would break the symmetry.
    """

    def __init__(self, fields_in: int, fields_out: int, kernel: int, *, image: bool = False) -> None:
        super().__init__()
        poses = 1 if image else _ORDER
        self.stride, self.padding = (1, kernel // 2) if kernel % 2 else (2, kernel // 2 - 1)
        self.shape = (fields_out, fields_in, poses, kernel)
        self.weight = nn.Parameter(torch.empty(fields_out, fields_in, poses * kernel * kernel))
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        # No buffer: it is no state, and averages and broadcasts of buffers would only meddle with it.
        self._gather = torch.from_numpy(filter_index(poses, kernel))

    def filters(self) -> Tensor:
        """Returns the filters of the plain convolution that this is: (8 * out, in or 8 * in, kernel, kernel)."""
        fields_out, fields_in, poses, kernel = self.shape
        rows = self.weight.permute(2, 0, 1).index_select(0, self._gather.to(self.weight.device))
        posed = rows.view(_ORDER, poses, kernel, kernel, fields_out, fields_in).permute(0, 4, 1, 5, 2, 3)
        return posed.reshape(_ORDER * fields_out, poses * fields_in, kernel, kernel)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.conv2d(x_BCHW, self.filters(), stride=self.stride, padding=self.padding)


class GroupNorm(nn.BatchNorm2d):
    """Batch norm of fields: a field's 8 maps share mean, variance, weight and bias."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        size, _, height, width = x_BCHW.shape
        # In memory the tensor is (B, H, W, G, C): this is a view of it in which the elements extend the width.
        side_by_side = x_BCHW.permute(0, 2, 3, 1).reshape(size, height, width * _ORDER, self.num_features).permute(0, 3, 1, 2)
        normed = super().forward(side_by_side).permute(0, 2, 3, 1)
        return normed.reshape(size, height, width, _ORDER * self.num_features).permute(0, 3, 1, 2)


class ConvNorm(nn.Sequential):
    """A group convolution and its norm, which fold into one plain convolution."""

    def __init__(self, fields_in: int, fields_out: int, kernel: int, *, image: bool = False) -> None:
        super().__init__()
        self.conv = GroupConv(fields_in, fields_out, kernel, image=image)
        self.norm = GroupNorm(fields_out)


class _Block(nn.Module):
    """Two convolutions with a shortcut (He et al. 2016, basic block); the first may halve the side."""

    def __init__(self, fields_in: int, fields_out: int, *, halve: bool) -> None:
        super().__init__()
        self.first = ConvNorm(fields_in, fields_out, 4 if halve else 3)
        self.second = ConvNorm(fields_out, fields_out, 3)
        self.halve = halve
        self.shortcut = GroupConv(fields_in, fields_out, 1) if halve else nn.Identity()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = _even(x_BCHW) if self.halve else x_BCHW
        short_BCHW = self.shortcut(F.avg_pool2d(x_BCHW, 2) if self.halve else x_BCHW)
        return F.relu(self.second(F.relu(self.first(x_BCHW))) + short_BCHW)


class GroupMax(nn.Module):
    """The largest of a field's 8 maps, pixel by pixel: a map (B, C, H, W) that turns with the tile."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        size, _, height, width = x_BCHW.shape
        return x_BCHW.reshape(size, _ORDER, -1, height, width).amax(dim=1)


class SymmetricPool(nn.Module):
    """A mean over space whose weights are learnt, the same at places that D4 maps to each other; at first all alike.

    So a network can learn that a tile's label is about its centre, as PCam's is, and stays invariant.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(side, side))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        halves = self.logits + self.logits.flip(1)
        logits = sum((halves.rot90(turns) for turns in range(1, 4)), halves) / _ORDER
        weights = logits.flatten().softmax(0)
        return x_BCHW.flatten(2).float() @ weights.float()


class P4mResNet(nn.Module):
    """Stem, residual stages, the largest over the group, mean over space and one linear layer."""

    def __init__(self, num_classes: int, input_px: int, dropout: float) -> None:
        super().__init__()
        self.stem = ConvNorm(3, _FIELDS[0], _STEM_KERNEL, image=True)
        blocks = []
        fields_in, side = _FIELDS[0], input_px // 2
        for stage, (fields, num_blocks) in enumerate(zip(_FIELDS, _NUM_BLOCKS, strict=True)):
            for number in range(num_blocks):
                halve = stage > 0 and number == 0
                blocks.append(_Block(fields_in, fields, halve=halve))
                fields_in, side = fields, side // 2 if halve else side
        self.blocks = nn.Sequential(*blocks)
        self.neck = ConvNorm(fields_in, _POOLED_FIELDS, 1)
        self.group_pool = GroupMax()
        self.pool = SymmetricPool(side)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(_POOLED_FIELDS, num_classes)

    def forward(self, tiles_BCHW: Tensor) -> Tensor:
        x_BCHW = F.relu(self.stem(_even(tiles_BCHW.contiguous(memory_format=torch.channels_last))))
        map_BCHW = self.group_pool(F.relu(self.neck(self.blocks(x_BCHW))))
        logits_BK: Tensor = self.head(self.dropout(self.pool(map_BCHW)))
        return logits_BK


def fold(model: nn.Module) -> nn.Module:
    """Returns a copy for inference that holds plain convolutions only, with each norm in the bias and filters before it."""
    folded = copy.deepcopy(model).eval()
    for module in list(folded.modules()):
        for name, child in module.named_children():
            if isinstance(child, ConvNorm):
                setattr(module, name, _plain(child.conv, child.norm))
            elif isinstance(child, GroupConv) and not isinstance(module, ConvNorm):
                setattr(module, name, _plain(child, None))
    return folded.requires_grad_(requires_grad=False)


def filter_index(poses: int, kernel: int) -> NDArray[np.int64]:
    """Returns where in a filter (poses, kernel, kernel) each value of its 8 posed filters (8, poses, kernel, kernel) lies.

    The filter for output element g and input element h is the filter's part g^-1 h, turned and flipped by g.
    """
    place = np.arange(poses * kernel * kernel).reshape(poses, kernel, kernel)
    posed = []
    for element in range(_ORDER):
        parts = [_from(element, other) for other in range(_ORDER)] if poses == _ORDER else [0]
        chosen = place[parts]
        flipped = np.flip(chosen, 2) if element >= 4 else chosen
        posed.append(np.rot90(flipped, element % 4, (1, 2)))
    return np.stack(posed).flatten()


def _from(element: int, other: int) -> int:
    """Returns the number of g^-1 h. With R a quarter turn and F the flip, F R = R^-1 F."""
    turns = other % 4 - element % 4
    flips = (other // 4 + element // 4) % 2
    return 4 * flips + (-turns if element >= 4 else turns) % 4


def _even(x_BCHW: Tensor) -> Tensor:
    """Makes an odd side one shorter and even, by means of 2 x 2 pixels: what halves it next needs that."""
    return F.avg_pool2d(x_BCHW, 2, stride=1) if x_BCHW.shape[-1] % 2 else x_BCHW


@torch.no_grad()
def _plain(conv: GroupConv, norm: GroupNorm | None) -> nn.Conv2d:
    filters = conv.filters()
    channels_out, channels_in, kernel, _ = filters.shape
    plain = nn.Conv2d(
        channels_in, channels_out, kernel, conv.stride, conv.padding, bias=norm is not None, device=filters.device
    )
    if norm is not None:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert plain.bias is not None
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        filters = filters * scale.repeat(_ORDER).view(-1, 1, 1, 1)
        plain.bias.copy_((norm.bias - norm.running_mean * scale).repeat(_ORDER))
    plain.weight.copy_(filters)
    return plain.to(memory_format=torch.channels_last)
