"""Groups by name and depth; LAMB against its definition; AdamW's fused route against the plain one."""

import pytest
import torch

from patchform.model import build_model
from patchform.records import Preprocessing
from patchform.settings import OptimizerSettings
from patchform.training import optimizer


def model_of(backbone="vit/nano", **options):
    size = Preprocessing(size=(32, 32))
    return build_model(
        "classification", backbone=backbone, head="linear", classes="abc", preprocessing=size, backbone_options=options
    )


def by_name(model, **settings):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for group in optimizer.groups(model, **{"weight_decay": 0.05, "layer_decay": 1.0} | settings):
        for parameter in group["params"]:
            assert names[id(parameter)] not in found
            found[names[id(parameter)]] = (group["weight_decay"], group["lr_scale"])
    assert found.keys() == set(names.values())
    return found


def test_only_matrices_that_place_nothing_are_decayed():
    found = by_name(model_of(registers=2))
    free = {name for name, (decay, _) in found.items() if decay == 0}
    matrices = {
        name for name in found if name.endswith(("qkv.weight", "out.weight", "fc1.weight", "classifier.weight"))
    }
    assert {"backbone.class_token", "backbone.register_tokens", "backbone.norm.weight", "head.classifier.bias"} <= free
    assert any("position" in name for name in free)
    assert matrices
    assert not matrices & free


@pytest.mark.parametrize(
    ("name", "free"),
    [
        ("backbone.class_token", True),
        ("backbone.position.table", True),
        ("position", True),
        ("backbone.tokens.weight", True),
        ("backbone.tokenizer.weight", False),
        ("backbone.composition.weight", False),
        ("backbone.blocks.0.mlp.in.weight", False),
    ],
)
def test_words_not_letters_name_positions_and_tokens(name, free):
    assert bool(optimizer.UNDECAYED.search(name)) == free


def test_rates_fall_layer_by_layer_from_the_head():
    found = by_name(model_of(depth=3), layer_decay=0.5)
    scales = {name: scale for name, (_, scale) in found.items()}
    assert scales["head.classifier.weight"] == 1
    assert scales["backbone.norm.weight"] == 1
    for layer in range(3):
        inside = {scale for name, scale in scales.items() if name.startswith(f"backbone.blocks.{layer}.")}
        assert inside == {0.5 ** (4 - (layer + 1))}
    assert scales["backbone.class_token"] == 0.5**4
    stem = {scale for name, scale in scales.items() if name.startswith(("backbone.patches.", "backbone.position."))}
    assert stem == {0.5**4}


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_the_whole_backbone_has_a_rate_of_its_own(decay):
    plain, slow = (by_name(model_of(), layer_decay=decay, backbone_rate=rate) for rate in (1.0, 0.25))
    for name, (weight_decay, scale) in plain.items():
        assert slow[name] == (weight_decay, scale * (0.25 if name.startswith("backbone.") else 1.0))
    model = model_of()
    made = optimizer.build(model, OptimizerSettings(lr=1.0, backbone_rate=0.25))
    optimizer.set_rate(made, 2.0)
    rates = {id(each): group["lr"] for group in made.param_groups for each in group["params"]}
    assert {rates[id(each)] for each in model.backbone.parameters()} == {0.5}
    assert {rates[id(each)] for each in model.head.parameters()} == {2.0}


def test_what_stands_between_layers_goes_with_the_former():
    model = model_of("resnet/nano")
    layers = model.backbone.layers()
    found = by_name(model, layer_decay=0.9)
    first = {id(parameter) for parameter in layers[0].parameters()}
    scales = [found[name][1] for name, parameter in model.named_parameters() if id(parameter) in first]
    assert set(scales) == {0.9 ** len(layers)}
    in_order = [found[name][1] for name, _ in model.named_parameters()]
    assert in_order == sorted(in_order)
    assert set_of_rates(model, 0.9) == {0.1 * scale for scale in in_order}


def set_of_rates(model, decay):
    made = optimizer.build(model, OptimizerSettings(layer_decay=decay))
    optimizer.set_rate(made, 0.1)
    return {group["lr"] for group in made.param_groups}


def lamb_by_definition(weights, gradients, *, lr, betas, eps, weight_decay):
    """You et al. 2020, algorithm 2, one tensor at a time."""
    m = v = torch.zeros_like(weights)
    for t, g in enumerate(gradients, 1):
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g**2
        r = (m / (1 - betas[0] ** t)) / ((v / (1 - betas[1] ** t)).sqrt() + eps)
        u = r + weight_decay * weights
        trust = weights.norm() / u.norm() if weight_decay and weights.norm() > 0 and u.norm() > 0 else 1.0
        weights = weights - lr * trust * u
    return weights


def test_lamb_is_its_definition():
    torch.manual_seed(0)
    starts = [torch.randn(3, 4), torch.randn(7) * 10, torch.zeros(2, 2), torch.randn(5)]
    decays = [0.1, 0.1, 0.1, 0.0]
    gradients = [[torch.randn_like(start) for _ in range(6)] for start in starts]
    settings = {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-6}
    parameters = [torch.nn.Parameter(start.double()) for start in starts]
    made = optimizer.Lamb([{"params": [p], "weight_decay": d} for p, d in zip(parameters, decays)], **settings)
    for step in range(6):
        for parameter, sequence in zip(parameters, gradients):
            parameter.grad = sequence[step].double()
        made.step()
    for parameter, start, sequence, decay in zip(parameters, starts, gradients, decays):
        sequence = [gradient.double() for gradient in sequence]
        expected = lamb_by_definition(start.double(), sequence, weight_decay=decay, **settings)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-12, atol=1e-12)
        unscaled = lamb_by_definition(start.double(), sequence, weight_decay=decay, **settings | {"eps": 1e-2})
        assert not torch.allclose(parameter, unscaled, rtol=1e-6)


def test_a_parameter_without_a_gradient_stays():
    parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    parameters[0].grad = torch.ones(2)
    optimizer.Lamb(parameters, lr=0.1).step()
    assert torch.equal(parameters[1], torch.ones(2))
    assert not torch.equal(parameters[0], torch.ones(2))


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("adamw", {"betas": (0.8, 0.95), "eps": 1e-3}),
        ("lamb", {"betas": (0.8, 0.95), "eps": 1e-3}),
        ("sgd", {"momentum": 0.7}),
    ],
)
def test_each_update_rule_has_the_settings_that_are_its_own(name, own):
    settings = OptimizerSettings(name=name, weight_decay=0.2, betas=(0.8, 0.95), eps=1e-3, momentum=0.7)
    made = optimizer.build(model_of(), settings).param_groups
    assert {group["weight_decay"] for group in made} == {0.0, 0.2}
    for group in made:
        assert {key: group[key] for key in own} == own


def test_the_fused_route_is_adamw():
    torch.manual_seed(0)
    models = [model_of() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    settings = OptimizerSettings(lr=1e-2)
    fast = optimizer.build(models[0], settings)
    plain = torch.optim.AdamW(
        optimizer.groups(models[1], weight_decay=settings.weight_decay, layer_decay=1.0), lr=1e-2, foreach=False
    )
    for _ in range(5):
        for one, other in zip(models[0].parameters(), models[1].parameters()):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        fast.step()
        plain.step()
    for one, other in zip(models[0].parameters(), models[1].parameters()):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
