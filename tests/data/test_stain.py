"""Stain normalisation is what its authors wrote down, leaves the reference alone, and never invents a colour."""

import numpy as np
import openvino
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from historay.data.corruptions import corrupt
from historay.data.stain import Macenko, Reinhard, measure_stain, normalise_stain, optical_density
from historay.data.synthetic import SyntheticConfig, draw_tile
from historay.data.transforms import Preprocessing, apply_d4, to_input, to_unit
from historay.errors import DataError

CONFIG = SyntheticConfig(out="unused", artefact_rate=0, num_sites=4)
HAEMATOXYLIN, EOSIN = np.array([0.65, 0.70, 0.29]), np.array([0.21, 0.92, 0.33])
METHODS = ("reinhard", "macenko")


@pytest.fixture(scope="module")
def tiles() -> Tensor:
    return to_unit(torch.from_numpy(np.stack([draw_tile(CONFIG, number)[1] for number in range(8)])))


def two_stained(seed: int, strength: float = 1.0, px: int = 64) -> Tensor:
    """A tile whose every pixel is a mixture of two known stains, as floats: no rounding."""
    rng = np.random.default_rng(seed)
    fields = ndimage.gaussian_filter(rng.normal(size=(2, px, px)), (0, 2, 2))
    amounts = 0.5 * np.exp(8 * fields) * (fields > -0.1) + 0.02
    stains = np.stack([v / np.linalg.norm(v) for v in (HAEMATOXYLIN, EOSIN)])
    density = strength * np.einsum("shw,sc->chw", np.minimum(amounts, 1), stains)
    return torch.from_numpy(10**-density)[None]


def macenko_by_numpy(tile_CHW: NDArray[np.float64], wanted: Macenko) -> NDArray[np.float64]:
    """Macenko et al. 2009, step by step, for one tile."""
    _, height, width = tile_CHW.shape
    means = tile_CHW.reshape(3, height // 2, 2, width // 2, 2).mean(axis=(2, 4))
    density = -np.log10(np.maximum(means, 1 / 255)).reshape(3, -1).T
    tissue = density[density.mean(axis=1) > 0.15]
    plane = np.linalg.svd(tissue, full_matrices=False)[2][:2]
    plane[0] *= np.sign(plane[0] @ tissue.mean(axis=0))
    projected = tissue @ plane.T
    low, high = np.percentile(np.arctan2(projected[:, 1], projected[:, 0]), [1, 99])
    pair = sorted((np.array([np.cos(a), np.sin(a)]) @ plane for a in (low, high)), key=lambda v: -v[0])
    rest = np.cross(*pair)
    found = np.stack([*pair, rest / np.linalg.norm(rest)])
    amounts = tissue @ np.linalg.inv(found)
    factor = np.array(wanted.strengths) / np.percentile(amounts[:, :2], 99, axis=0)
    target = np.stack([*np.array(wanted.stains), np.cross(*wanted.stains)])
    target[2] /= np.linalg.norm(target[2])
    whole = -np.log10(np.maximum(tile_CHW, 1 / 255)).reshape(3, -1).T
    moved = np.linalg.solve(found.T, whole.T).T * np.append(factor, 1) @ target
    return np.clip(10**-moved, 0, 1).T.reshape(tile_CHW.shape)


def reinhard_by_numpy(tile_CHW: NDArray[np.float64], wanted: Reinhard) -> NDArray[np.float64]:
    """Reinhard et al. 2001, over tissue only, for one tile."""
    to_lms = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
    to_lab = np.diag([3**-0.5, 6**-0.5, 2**-0.5]) @ [[1, 1, 1], [1, 1, -2], [1, -1, 0]]
    pixels = np.maximum(tile_CHW, 1 / 255).reshape(3, -1)
    lab = to_lab @ np.log10(to_lms @ pixels)
    tissue = (-np.log10(pixels)).mean(axis=0) > 0.15
    mean, std = lab[:, tissue].mean(axis=1), lab[:, tissue].std(axis=1)
    moved = (lab.T - mean) / std * wanted.std + wanted.mean
    return np.clip(np.linalg.inv(to_lms) @ 10 ** np.linalg.solve(to_lab, moved.T), 0, 1).reshape(tile_CHW.shape)


@pytest.mark.parametrize("method", METHODS)
def test_it_is_the_published_method_written_in_numpy(tiles: Tensor, method: str) -> None:
    wanted = measure_stain(tiles[:2], method)  # type: ignore[arg-type]
    found = normalise_stain(tiles[2:], wanted)
    for tile, ours in zip(tiles[2:].numpy().astype(np.float64), found.numpy(), strict=True):
        reference = macenko_by_numpy(tile, wanted) if isinstance(wanted, Macenko) else reinhard_by_numpy(tile, wanted)
        np.testing.assert_allclose(ours, reference, atol=2e-3)
        assert np.abs(tile - reference).mean() > 0.01  # there was something to do


@pytest.mark.parametrize("method", METHODS)
def test_the_reference_itself_stays_as_it_is(tiles: Tensor, method: str) -> None:
    for tile in tiles.split(1):
        torch.testing.assert_close(normalise_stain(tile, measure_stain(tile, method)), tile, atol=1.01 / 255, rtol=0)  # type: ignore[arg-type]


def test_normalised_tiles_are_stained_as_the_reference(tiles: Tensor) -> None:
    wanted, before = measure_stain(tiles[:2], "macenko"), measure_stain(tiles[3:4], "macenko")
    after = measure_stain(normalise_stain(tiles[3:4], wanted), "macenko")

    def values(measured: Reinhard | Macenko) -> NDArray[np.float64]:
        assert isinstance(measured, Macenko)
        return np.append(np.ravel(measured.stains), measured.strengths)

    assert np.abs(values(after) - values(wanted)).max() < 0.25 * np.abs(values(before) - values(wanted)).max()


def test_macenko_finds_the_stains_that_a_picture_was_made_of() -> None:
    found = measure_stain(two_stained(0), "macenko")
    assert isinstance(found, Macenko)
    for ours, true in zip(found.stains, (HAEMATOXYLIN, EOSIN), strict=True):
        assert np.dot(ours, true / np.linalg.norm(true)) > np.cos(np.deg2rad(3))


@pytest.mark.parametrize("strength", [0.7, 1.3, 1.6])
def test_a_weaker_or_stronger_stain_comes_out_nearly_the_same(strength: float) -> None:
    wanted = measure_stain(two_stained(1), "macenko")
    plain, other = two_stained(2), two_stained(2, strength)
    assert (optical_density(plain) - optical_density(other)).abs().mean() > 0.05
    gap = optical_density(normalise_stain(plain, wanted)) - optical_density(normalise_stain(other, wanted))
    assert gap.abs().mean() < 0.1 * (optical_density(plain) - optical_density(other)).abs().mean()


def test_a_shift_of_the_stain_is_mostly_taken_back_by_macenko(tiles: Tensor) -> None:
    wanted = measure_stain(tiles[:4], "macenko")
    levels = (255 * tiles[4:]).round().byte().permute(0, 2, 3, 1)
    shifted = to_unit(torch.from_numpy(corrupt(levels.numpy(), "stain", 3, 0)))
    untouched = (shifted - tiles[4:]).abs().mean()
    assert (normalise_stain(shifted, wanted) - normalise_stain(tiles[4:], wanted)).abs().mean() < 0.3 * untouched


def test_a_darker_lamp_is_taken_back_by_reinhard_where_all_is_tissue(tiles: Tensor) -> None:
    wanted, plain = measure_stain(tiles[:4], "reinhard"), 0.2 + 0.3 * tiles[4:]
    torch.testing.assert_close(normalise_stain(0.7 * plain, wanted), normalise_stain(plain, wanted), atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("colour", [(1.0, 1.0, 1.0), (0.96, 0.95, 0.97), (0.0, 0.0, 0.0), (0.6, 0.3, 0.6)])
def test_a_blank_black_or_plain_tile_stays_finite_and_a_picture(
    tiles: Tensor, method: str, colour: tuple[float, float, float]
) -> None:
    wanted = measure_stain(tiles, method)  # type: ignore[arg-type]
    plain = torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, 96, 96)
    found = normalise_stain(torch.cat([plain, tiles]), wanted)
    assert torch.isfinite(found).all()
    assert 0 <= found.min() <= found.max() <= 1
    torch.testing.assert_close(found[1:], normalise_stain(tiles, wanted))  # its neighbours do not care
    if method == "macenko" or min(colour) > 0.9:
        assert torch.equal(found[:1], plain), "no tissue, or no two stains: nothing to go by"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("px", [96, 95])
def test_it_turns_with_the_tile(tiles: Tensor, method: str, px: int) -> None:
    cut = tiles[:, :, :px, :px]
    wanted = measure_stain(tiles[:2], method)  # type: ignore[arg-type]
    for element in range(8):
        turned = normalise_stain(apply_d4(cut, element), wanted)
        # Sums round in another order, which may put one pixel on the other side of the threshold of tissue.
        torch.testing.assert_close(turned, apply_d4(normalise_stain(cut, wanted), element), atol=2e-3, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_a_reference_without_tissue_is_refused(method: str) -> None:
    with pytest.raises(DataError, match="under 5% tissue"):
        measure_stain(torch.ones(2, 3, 32, 32), method)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS)
def test_the_bundle_keeps_the_reference_and_serving_applies_the_same(tiles: Tensor, method: str) -> None:
    stain = measure_stain(tiles[:2], method)  # type: ignore[arg-type]
    made = Preprocessing(input_px=96, mean=(0.7, 0.5, 0.6), std=(0.2, 0.2, 0.2), stain=stain)
    kept = Preprocessing.model_validate_json(made.model_dump_json())
    assert kept == made
    levels = (255 * tiles).round().byte().permute(0, 2, 3, 1)
    expected = (normalise_stain(to_unit(levels), stain) - torch.tensor(made.mean).view(1, 3, 1, 1)) / 0.2
    torch.testing.assert_close(to_input(levels, kept), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_openvino_runs_it_as_part_of_the_network(tiles: Tensor, method: str) -> None:
    stain = measure_stain(tiles[:2], method)  # type: ignore[arg-type]
    preprocessing = Preprocessing(input_px=96, mean=(0.7, 0.5, 0.6), std=(0.2, 0.2, 0.2), stain=stain)

    class Input(torch.nn.Module):
        def forward(self, tiles_BHWC: Tensor) -> Tensor:
            return to_input(tiles_BHWC, preprocessing)

    levels = (255 * tiles).round().byte().permute(0, 2, 3, 1).contiguous()
    program = torch.export.export(
        Input().eval(), (levels[:2],), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},)
    )
    compiled = openvino.Core().compile_model(openvino.convert_model(program), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    np.testing.assert_allclose(compiled([levels.numpy()])[0], to_input(levels, preprocessing).numpy(), atol=2e-3)
