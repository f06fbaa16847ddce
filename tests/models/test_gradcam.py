"""Grad-CAM points at the evidence, forgets what the weights forget, and is CAM where theory says so."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from images import texture
from networks import quick_network
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F  # noqa: N812

from historay.data.transforms import Preprocessing
from historay.models.features import last_linear, predict_logits_and_features
from historay.models.gradcam import _last_map_of, grad_cam, overlay
from historay.models.inference import predict_logits
from historay.models.zoo import ARCHITECTURES, build_model

pytestmark = pytest.mark.usefixtures("one_thread")

# One network of each family whose last layer sees the mean of a map and nothing else.
MEAN_THEN_LINEAR = ("small_cnn", "vgg11_bn", "resnet18", "densenet121", "efficientnet_b0", "mobilenet_v2")
SIDE = 24  # of the planted square


def preprocessing(px: int) -> Preprocessing:
    return Preprocessing(input_px=px, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))


def with_square(seed: int, px: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Tissue with one bright square somewhere, and where it is."""
    row, column = np.random.default_rng(seed).integers(0, px - SIDE, 2)
    inside = np.zeros((px, px), bool)
    inside[row : row + SIDE, column : column + SIDE] = True
    tile = texture(seed, px)
    tile[inside] = 250
    return tile, inside


@pytest.fixture(scope="module")
def square_finder() -> nn.Module:
    """A small_cnn that learned in some seconds to tell tissue with a bright square from tissue without."""
    torch.manual_seed(0)
    model = build_model("small_cnn", 2, 96)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    rng = np.random.default_rng(0)
    for _ in range(40):
        label = rng.integers(2, size=16)
        seeds = rng.integers(1000, 100_000, 16)
        tiles = np.stack([with_square(s, 96)[0] if y else texture(s, 96) for s, y in zip(seeds, label, strict=True)])
        inputs = (torch.from_numpy(tiles).permute(0, 3, 1, 2) / 255 - 0.5) / 0.2
        loss = F.cross_entropy(model(inputs), torch.from_numpy(label))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(requires_grad=False)


def test_the_heat_of_a_trained_network_lies_on_what_it_was_taught_to_see(square_finder: nn.Module) -> None:
    px = 192  # a map of 6 x 6 pixels
    tiles, inside = (np.stack(part) for part in zip(*(with_square(seed, px) for seed in range(40)), strict=True))
    logits = predict_logits(square_finder, tiles, preprocessing(px))
    assert (logits.argmax(axis=1) == 1).mean() > 0.9
    heat = grad_cam(square_finder, tiles, preprocessing(px), np.ones(40, np.int64))
    hottest = [np.unravel_index(one.argmax(), one.shape) for one in heat]
    centre = [np.argwhere(one).mean(axis=0) for one in inside]
    # A pixel of the map stands for 32 of the tile.
    near = [np.abs(np.subtract(a, b)).max() < 32 for a, b in zip(hottest, centre, strict=True)]
    assert np.mean(near) > 0.9
    share = (heat * inside).sum(axis=(1, 2)) / heat.sum(axis=(1, 2))
    assert np.median(share) > 4 * (SIDE / px) ** 2


def test_random_weights_give_another_map(square_finder: nn.Module) -> None:
    """The sanity check of Adebayo et al. 2018: an explanation that survives this shows the tile, not the model."""
    tiles = np.stack([with_square(seed, 192)[0] for seed in range(20)])
    torch.manual_seed(5)
    maps = [
        grad_cam(model, tiles, preprocessing(192), np.ones(20, np.int64))
        for model in (square_finder, build_model("small_cnn", 2, 192).eval())
    ]
    likeness = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(*maps, strict=True) if b.any()]
    assert np.median([*likeness, 0.0]) < 0.5


def test_hand_set_weights_give_exactly_the_map_they_describe() -> None:
    model = nn.Sequential(nn.Conv2d(3, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2)).eval()
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.zero_()
        model[4].weight.copy_(torch.tensor([[-1.0], [2.0]]))
    tile = np.zeros((1, 12, 12, 3), np.uint8)
    tile[0, 2:5, 7:9] = 255
    plain = Preprocessing(input_px=12, mean=(0, 0, 0), std=(1, 1, 1))
    np.testing.assert_allclose(grad_cam(model, tile, plain, np.array([1])), tile[..., 0] / 255, atol=1e-6)
    assert not grad_cam(model, tile, plain, np.array([0])).any(), "what speaks for class 1 is no evidence for class 0"


@pytest.mark.parametrize(
    "architecture", ["small_cnn", "vgg11_bn", "resnet18", "densenet121", "efficientnet_b0", "mobilenet_v2"]
)
def test_the_map_looked_at_is_the_one_whose_mean_the_last_layer_sees(architecture: str) -> None:
    """Then Grad-CAM equals the class activation map of Zhou et al. 2016, computed here from the last layer's weights."""
    torch.manual_seed(0)
    model = quick_network(architecture, 3, 96)
    tiles = np.stack([texture(seed, 96) for seed in range(2)])
    with torch.no_grad(), _last_map_of(model) as seen:
        _, features = predict_logits_and_features(model, tiles, preprocessing(96))
    np.testing.assert_allclose(seen[0].mean(dim=(2, 3)).numpy(), features, atol=1e-5)

    logits = torch.from_numpy(predict_logits(model, tiles, preprocessing(96)))
    weights = last_linear(model).weight.detach()
    others = logits[:, [0, 2]].softmax(dim=1)  # log(p1 / (1 - p1)) falls with each rival as its share among the rivals
    difference = weights[1] - others @ weights[[0, 2]]
    cam = torch.einsum("bc,bchw->bhw", difference, seen[0]).relu()
    cam = F.interpolate(cam[:, None], size=(96, 96), mode="bilinear", align_corners=False)[:, 0]
    cam = cam / cam.amax(dim=(1, 2), keepdim=True).clamp_min(1e-30)
    np.testing.assert_allclose(grad_cam(model, tiles, preprocessing(96), np.array([1, 1])), cam.numpy(), atol=1e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_network_gives_heat_from_0_to_1_of_the_tile_s_size_and_keeps_no_gradient(architecture: str) -> None:
    px = 75 if architecture == "inception_v3" else 32
    torch.manual_seed(0)
    model = quick_network(architecture, 3, px)
    tiles = np.stack([texture(seed, px) for seed in range(2)])
    maps = np.stack([grad_cam(model, tiles, preprocessing(px), np.full(2, k)) for k in range(3)])
    assert maps.shape == (3, 2, px, px)
    assert set(np.unique(maps.max(axis=(2, 3)))) <= {np.float32(0), np.float32(1)}
    assert maps.min() >= 0
    assert (maps.max(axis=(2, 3)) == 1).any(axis=0).all(), "something speaks for at least one class"
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_heat_depends_neither_on_the_other_tiles_nor_on_what_is_added_to_all_logits(square_finder: nn.Module) -> None:
    tiles = np.stack([with_square(seed, 96)[0] for seed in range(5)])
    classes = np.array([1, 0, 1, 1, 0])
    together = grad_cam(square_finder, tiles, preprocessing(96), classes)
    apart = [grad_cam(square_finder, tiles[i : i + 1], preprocessing(96), classes[i : i + 1])[0] for i in range(5)]
    np.testing.assert_allclose(together, np.stack(apart), atol=1e-4)
    head, before = last_linear(square_finder), last_linear(square_finder).weight.clone()
    head.weight.add_(torch.linspace(0, 3, head.in_features))  # the same for every class
    shifted = grad_cam(square_finder, tiles, preprocessing(96), classes)
    head.weight.copy_(before)
    np.testing.assert_allclose(shifted, together, atol=1e-3)


def test_threads_that_share_a_model_get_their_own_heat(square_finder: nn.Module) -> None:
    tiles = np.stack([with_square(seed, 96)[0] for seed in range(6)])

    def heat(row: int) -> NDArray[np.float32]:
        return grad_cam(square_finder, tiles[row : row + 1], preprocessing(96), np.array([1]))

    alone = [heat(row) for row in range(6)]
    with ThreadPoolExecutor(4) as threads:
        rows = list(range(6)) * 8
        for row, found in zip(rows, threads.map(heat, rows), strict=True):
            np.testing.assert_array_equal(found, alone[row])


def test_the_overlay_grows_lighter_with_heat_and_keeps_the_tissue_s_structure() -> None:
    ramp = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
    flat = np.full((64, 64, 3), 128, np.uint8)
    shown = overlay(flat, ramp)
    assert shown.shape == (64, 64, 3)
    assert shown.dtype == np.uint8
    lightness = shown[0].astype(float) @ [0.299, 0.587, 0.114]
    assert (np.diff(lightness) >= -0.51).all()  # half a level of rounding
    assert lightness[-1] - lightness[0] > 80
    tile = texture(3, 64)
    cold = overlay(tile, np.zeros((64, 64), np.float32)).astype(float).mean(axis=2)
    assert np.corrcoef(cold.ravel(), (tile @ [0.299, 0.587, 0.114]).ravel())[0, 1] > 0.99
