"""A small residual network of our own, for CPUs: depthwise convolutions would be memory-bound there, so plain ones."""

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

_WIDTHS = (24, 48, 96, 128)


class _Block(nn.Module):
    """Two 3 x 3 convolutions with a shortcut; the first halves the side (He et al. 2016, basic block)."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width_out, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width_out)
        self.shortcut = nn.Conv2d(width_in, width_out, 1, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = F.relu(self.norm1(self.conv1(x_BCHW)))
        y_BCHW = self.norm2(self.conv2(y_BCHW))
        return F.relu(y_BCHW + self.shortcut(F.avg_pool2d(x_BCHW, 2, ceil_mode=True)))


class SmallCNN(nn.Module):
    """Stem of stride 2, four residual blocks, mean over space, one linear layer; about 0.5 million parameters."""

    def __init__(self, num_classes: int, dropout: float, widths: tuple[int, ...] = _WIDTHS) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        self.blocks = nn.Sequential(*(_Block(*pair) for pair in zip(widths[:1] + widths, widths, strict=False)))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, tiles_BCHW: Tensor) -> Tensor:
        features_BC = self.blocks(self.stem(tiles_BCHW)).mean(dim=(2, 3))
        logits_BK: Tensor = self.head(self.dropout(features_BC))
        return logits_BK
