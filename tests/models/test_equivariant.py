"""No symmetry of the square changes what the p4m network says, and folding it changes nothing at all."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from historay.data.transforms import Preprocessing, apply_d4
from historay.models.equivariant import ConvNorm, GroupConv, GroupMax, GroupNorm, fold
from historay.models.gradcam import grad_cam
from historay.models.inference import for_inference
from historay.models.zoo import build_model

pytestmark = pytest.mark.usefixtures("one_thread")

ELEMENTS = range(8)


def lived_in(px: int) -> nn.Module:
    """A network whose norms and pooling are not those of the first day, in evaluation mode."""
    torch.manual_seed(0)
    model = build_model("p4m_resnet", 3, px)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, GroupNorm):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
                module.running_mean.normal_(0, 0.3)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 4)  # type: ignore[union-attr]
        model.pool.logits.normal_()  # type: ignore[union-attr, operator]
    return model.eval()


def act(fields_BCHW: Tensor, element: int) -> Tensor:
    """Turns fields as D4 does: every map turns, and the map of g^-1 h comes to the place of h."""
    probe = torch.arange(9.0).view(1, 1, 3, 3)
    poses = [apply_d4(probe, other) for other in ELEMENTS]
    # The place of h holds what was at k where g k = h, read off a picture that no symmetry leaves alone.
    source = [next(k for k in ELEMENTS if torch.equal(apply_d4(poses[k], element), poses[h])) for h in ELEMENTS]
    return apply_d4(fields_BCHW.unflatten(1, (8, -1))[:, source].flatten(1, 2), element)


@pytest.mark.parametrize("px", [32, 33, 75, 96, 97, 224])
def test_no_turn_or_flip_changes_the_logits_at_even_and_odd_sides(px: int) -> None:
    model, tiles = lived_in(px), torch.randn(1, 3, px, px)
    with torch.inference_mode():
        every = model(torch.cat([apply_d4(tiles, element) for element in ELEMENTS]))
        other = model(0.5 * torch.randn(1, 3, px, px))
    torch.testing.assert_close(every, every[:1].expand(8, -1), atol=1e-4, rtol=0)
    assert (every[0] - other[0]).abs().max() > 1e-2  # it is no constant


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 3, 5]), st.sampled_from(ELEMENTS), st.integers(0, 2**31))
def test_a_group_convolution_turns_its_output_as_its_input_is_turned(
    fields_in: int, fields_out: int, kernel: int, element: int, seed: int
) -> None:
    torch.manual_seed(seed)
    conv = GroupConv(fields_in, fields_out, kernel).double()
    fields = torch.randn(2, 8 * fields_in, 7, 7, dtype=torch.float64)
    torch.testing.assert_close(conv(act(fields, element)), act(conv(fields), element))


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("kernel", [3, 4, 6])
def test_so_does_the_first_one_whose_input_is_an_image(element: int, kernel: int) -> None:
    torch.manual_seed(0)
    conv, tiles = GroupConv(3, 2, kernel, image=True).double(), torch.randn(2, 3, 12, 12, dtype=torch.float64)
    torch.testing.assert_close(conv(apply_d4(tiles, element)), act(conv(tiles), element))
    assert conv(tiles).shape[-1] == (12 if kernel % 2 else 6)


@pytest.mark.parametrize("element", ELEMENTS)
def test_the_largest_over_the_group_turns_like_a_picture(element: int) -> None:
    fields = torch.randn(2, 24, 6, 6)
    assert torch.equal(GroupMax()(act(fields, element)), apply_d4(GroupMax()(fields), element))


def test_the_group_norm_is_torchs_norm_over_a_fields_eight_maps() -> None:
    torch.manual_seed(0)
    ours, torchs = GroupNorm(5), nn.BatchNorm3d(5)
    fields = (2 + 3 * torch.randn(4, 40, 6, 6)).contiguous(memory_format=torch.channels_last)
    expected = torchs(fields.unflatten(1, (8, 5)).transpose(1, 2)).transpose(1, 2).flatten(1, 2)
    torch.testing.assert_close(ours(fields), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.running_var, torchs.running_var)


@pytest.mark.parametrize("px", [48, 97])
def test_folded_it_says_the_same_with_plain_convolutions_only(px: int) -> None:
    model, tiles = lived_in(px), torch.randn(2, 3, px, px)
    before = copy.deepcopy(model.state_dict())
    folded = fold(model)
    with torch.inference_mode():
        torch.testing.assert_close(folded(tiles), model(tiles), atol=1e-5, rtol=1e-5)
    assert not any(isinstance(m, GroupConv | GroupNorm | ConvNorm) for m in folded.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()), "the model was changed"


def test_the_fold_follows_the_weights_and_caches_nothing() -> None:
    model, tiles = lived_in(32), torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        stale = fold(model)(tiles)
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    with torch.inference_mode():
        torch.testing.assert_close(fold(model)(tiles), model(tiles), atol=1e-5, rtol=1e-5)
        assert not torch.allclose(fold(model)(tiles), stale, atol=1e-3)


def test_the_gradient_keeps_it_invariant_after_training_steps() -> None:
    torch.manual_seed(0)
    model = build_model("p4m_resnet", 2, 32).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    labels = torch.arange(8) % 2
    tiles = torch.randn(8, 3, 32, 32) + labels.view(-1, 1, 1, 1)
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(tiles), labels).backward()
        optimizer.step()
    assert model.pool.logits.abs().max() > 0  # the pooling learns, too
    with torch.inference_mode():
        expected = model.eval()(tiles)
        for element in ELEMENTS:
            torch.testing.assert_close(model(apply_d4(tiles, element)), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("element", [1, 4, 6])
def test_the_heat_map_turns_with_the_tile(element: int) -> None:
    model, preprocessing = lived_in(48), Preprocessing(input_px=48, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    tiles = np.random.default_rng(0).integers(0, 256, (2, 48, 48, 3), dtype=np.uint8)
    turned = apply_d4(torch.from_numpy(tiles).permute(0, 3, 1, 2), element).permute(0, 2, 3, 1).numpy()
    heat = torch.from_numpy(grad_cam(model, tiles, preprocessing, np.array([0, 1])))
    assert heat.amax() == 1
    again = torch.from_numpy(grad_cam(model, turned, preprocessing, np.array([0, 1])))
    torch.testing.assert_close(again[:, None], apply_d4(heat[:, None], element), atol=1e-3, rtol=0)


@pytest.mark.parametrize("architecture", ["p4m_resnet", "small_cnn", "resnet18", "efficientnet_b0", "convnext_tiny"])
def test_made_ready_for_inference_every_kind_of_network_says_the_same(architecture: str) -> None:
    torch.manual_seed(0)
    model, tiles = build_model(architecture, 2, 32), torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        model.train()(tiles)
    ready = for_inference(model.eval())
    with torch.inference_mode():
        torch.testing.assert_close(ready(tiles), model(tiles), atol=1e-5, rtol=1e-5)
    assert not ready.training
    assert ready is model or not any(isinstance(m, nn.BatchNorm2d) for m in ready.modules())
