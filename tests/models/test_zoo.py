"""Every network of the zoo can be built, fits small tiles and says what does not fit."""

import pytest
import torch

from historay.errors import ConfigError
from historay.models.zoo import ARCHITECTURES, build_model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("input_px", [32, 96, 299])
def test_every_network_maps_tiles_to_logits(architecture: str, input_px: int) -> None:
    if architecture == "inception_v3" and input_px < 75:
        pytest.skip("inception needs 75 px; another test sees it refused")
    with torch.device("meta"):  # shapes only: weights would take minutes
        model = build_model(architecture, 3, input_px, dropout=0.1).eval()
        assert model(torch.empty(2, 3, input_px, input_px)).shape == (2, 3)


@pytest.mark.parametrize("architecture", ["small_cnn", "resnet18", "mobilenet_v3_small", "vgg11_bn"])
def test_logits_are_finite_and_a_few_steps_lower_the_loss(architecture: str) -> None:
    torch.manual_seed(0)
    model = build_model(architecture, 2, 32)
    labels = torch.arange(16) % 2
    tiles = torch.randn(16, 3, 32, 32) + 2 * labels.view(-1, 1, 1, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(25):
        loss = torch.nn.functional.cross_entropy(model(tiles), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert torch.isfinite(model.eval()(tiles)).all()


def test_inception_has_its_auxiliary_head_where_it_fits() -> None:
    with torch.device("meta"):
        tiles = torch.empty(2, 3, 299, 299)
        assert len(build_model("inception_v3", 2, 299).train()(tiles)) == 2
        assert build_model("inception_v3", 2, 96).train()(torch.empty(2, 3, 96, 96)).shape == (2, 2)


def test_dropout_acts_before_the_last_layer_of_every_network() -> None:
    with torch.device("meta"):
        for architecture in ARCHITECTURES:
            rates = [m.p for m in build_model(architecture, 2, 96, dropout=0.37).modules() if isinstance(m, torch.nn.Dropout)]
            assert rates == [0.37], architecture


def test_too_small_an_input_is_refused_with_the_least_that_works() -> None:
    with pytest.raises(ConfigError, match="input_px=64 is too small for inception_v3, which needs at least 75"):
        build_model("inception_v3", 2, 64)
    with pytest.raises(ConfigError, match="input_px=16 is too small for resnet18, which needs at least 32"):
        build_model("resnet18", 2, 16)


def test_an_unknown_name_suggests_the_near_ones() -> None:
    with pytest.raises(ConfigError, match="unknown architecture 'resnet-18'; did you mean resnet18"):
        build_model("resnet-18", 2, 96)
