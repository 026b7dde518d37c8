"""Files of int8: what is in them, how near they are, and what is left out of them, on graphs by hand."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import numpy_helper  # noqa: E402
from onnx_graphs import FREE, Builder, convolutional, pictures, run  # noqa: E402

from patchform.errors import ModelFileError, UsageError  # noqa: E402
from patchform.export.fidelity import Fidelity  # noqa: E402
from patchform.export.int8_options import Int8Options  # noqa: E402
from patchform.export.leaving_out import decibels  # noqa: E402
from patchform.export.quantize import quantize  # noqa: E402
from patchform.export.quantizers import Quantizer, _check_products, ranges  # noqa: E402
from patchform.export.weighted import layers_of  # noqa: E402


@pytest.fixture(scope="module")
def plain():
    return convolutional()


@pytest.fixture(scope="module")
def spoiled():
    return convolutional(spoiled=True)


def saved(model, folder):
    path = folder / "float32.onnx"
    onnx.save(model, path)
    return path


def weights_of(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def quantised(tmp_path, model, number=24, **options):
    seen = []
    options.setdefault("least_snr", 10)
    report = quantize(
        saved(model, tmp_path),
        tmp_path / "int8.onnx",
        pictures(number),
        Int8Options(**options),
        progress=lambda *news: seen.append(news),
    )
    return onnx.load(tmp_path / "int8.onnx"), report, seen


# ------------------------------------------------------------------------------------------------------- what is inside


@pytest.mark.parametrize("method", ["static", "dynamic"])
@pytest.mark.parametrize("bits", [7, 8])
def test_weights_of_each_channel_are_within_half_a_step(plain, tmp_path, method, bits):
    model, report, _ = quantised(tmp_path, plain, method=method, bits=bits, least_snr=0)
    before, after = weights_of(plain), weights_of(model)
    layers = [layer for layer in layers_of(plain).inner if method == "static" or layer.kind == "MatMul"]
    assert report.quantised == len(layers) == (4 if method == "static" else 1)
    for layer in layers:
        whole, scale = after[f"{layer.weights}_quantized"], after[f"{layer.weights}_scale"]
        axis = 0 if layer.kind == "Conv" else 1
        assert whole.dtype == np.int8
        assert scale.shape == (whole.shape[axis],)
        assert not after[f"{layer.weights}_zero_point"].any()
        assert abs(whole.astype(int)).max() <= 2 ** (bits - 1)
        assert abs(whole.astype(int)).max() >= 2 ** (bits - 1) - 2
        shape = [-1 if index == axis else 1 for index in range(whole.ndim)]
        error = abs(before[layer.weights] - whole * scale.reshape(shape))
        assert (error <= 0.501 * scale.reshape(shape)).all()
        assert layer.weights not in after
    stays = {layer.weights for field in (layers_of(plain).first, layers_of(plain).last) for layer in field}
    for name in stays:
        np.testing.assert_array_equal(before[name], after[name])


def test_seven_bits_cannot_overflow_in_sixteen():
    """Products of a byte and a weight are added in pairs where a processor lacks VNNI: 255 * 64 * 2 < 2 ** 15."""
    assert 2 * 255 * 2**6 < 2**15 <= 2 * 255 * 2**7


@pytest.mark.parametrize("method", ["static", "dynamic"])
def test_inputs_outputs_and_what_it_says_stay(plain, tmp_path, method):
    model, _, _ = quantised(tmp_path, plain, method=method)
    assert model.graph.input == plain.graph.input
    assert model.graph.output == plain.graph.output
    assert [(entry.key, entry.value) for entry in model.metadata_props] == [("patchform", "told")]
    assert model.producer_name == "patchform"
    assert not model.graph.value_info
    onnx.checker.check_model(model, full_check=True)


def test_convolutions_of_dynamic_ranges_stay_float32(plain, tmp_path):
    model, report, _ = quantised(tmp_path, plain, method="dynamic")
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("Conv") == 4
    assert kinds.count("MatMulInteger") == 1
    assert "ConvInteger" not in kinds
    assert sum(row.layers for row in report.left_out if row.reason.startswith("convolution")) == 3


def test_a_product_with_its_bias_gets_dynamic_ranges_too(tmp_path):
    """The quantiser makes another node of it, of another name, and would pass over the one that it was asked for."""
    build = Builder()
    x = build.node("Flatten", [build.node("GlobalAveragePool", [build.pixels()], "pooled")], "flat")
    for module, into in (("backbone.stem", 3), ("backbone.blocks.0.mlp.fc1", 8), ("backbone.blocks.0.mlp.fc2", 8)):
        x = build.gemm(x, module, into, 8)
    plain = build.model(build.gemm(x, "head.classifier", 8, 5), ["batch", 5])
    model, report, _ = quantised(tmp_path, plain, method="dynamic", least_snr=0)
    kinds = [node.op_type for node in model.graph.node]
    assert report.quantised == kinds.count("MatMulInteger") == 2
    feeds = pictures(1)[0]
    before, after = run(plain, feeds)[0], run(model, feeds)[0]
    assert 0 < abs(before - after).max() < 0.05 * abs(before).max()


def test_a_layer_that_the_quantiser_passes_over_is_noticed(plain):
    with pytest.raises(RuntimeError, match="made 0 products of integers where 2 were asked for"):
        _check_products(plain, 2)


def test_products_of_activations_stay_float32(tmp_path):
    build = Builder()
    x = build.linear(build.node("Transpose", [build.pixels()], "rows", perm=[0, 2, 3, 1]), "backbone.patches", 3, 8)
    x = build.linear(x, "backbone.blocks.0.qkv", 8, 8)
    turned = build.node("Transpose", [x], "turned", perm=[0, 1, 3, 2])
    x = build.node("MatMul", [turned, x], "attention")
    x = build.linear(x, "backbone.blocks.0.proj", 8, 8)
    build.linear(x, "head.classifier", 8, 2)
    graph = build.model("head.classifier_out", FREE)
    for method in ("static", "dynamic"):
        model, report, _ = quantised(tmp_path, graph, method=method, least_snr=0)
        assert report.quantised == 2
        attention = next(node for node in model.graph.node if node.name == "node_attention")
        makers = {name: node.op_type for node in model.graph.node for name in node.output}
        assert attention.op_type == "MatMul"
        assert "DequantizeLinear" not in {makers[name] for name in attention.input}


# ------------------------------------------------------------------------------------------------------ how near it is


@pytest.mark.parametrize("method", ["static", "dynamic"])
def test_any_size_and_number_go_in_as_before(plain, tmp_path, method):
    model, _, _ = quantised(tmp_path, plain, method=method)
    for number, size in ((1, (24, 20)), (3, (17, 23)), (2, (40, 8)), (5, (9, 31))):
        images = np.concatenate([feeds["images"] for feeds in pictures(number, size, seed=7)])
        (before,), (after,) = run(plain, {"images": images}), run(model, {"images": images})
        assert before.shape == after.shape == (number, 5)
        assert abs(before - after).max() < 0.02
        assert abs(before - after).max() > 0


def test_with_static_ranges_no_picture_depends_on_others(plain, tmp_path):
    model, _, _ = quantised(tmp_path, plain, method="static")
    images = np.concatenate([feeds["images"] for feeds in pictures(4, seed=3)])
    images[3] = 255
    (together,) = run(model, {"images": images})
    alone = np.concatenate([run(model, {"images": image[None]})[0] for image in images])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_the_error_is_that_of_the_last_layer_against_what_it_varies_by(plain):
    """A bias that is a little off, counted by hand."""
    layers, feeds = layers_of(plain), pictures(6)
    off = onnx.ModelProto()
    off.CopyFrom(plain)
    bias = next(tensor for tensor in off.graph.initializer if tensor.name.endswith("hidden.bias"))
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 0.1, bias.name))
    probe = [onnx.ModelProto(), onnx.ModelProto()]
    for copy, model in zip(probe, (plain, off)):
        copy.CopyFrom(model)
        copy.graph.output.append(onnx.helper.make_tensor_value_info(layers.last[0].output, 1, None))
    logits, shifted = (np.concatenate([run(model, picture)[-1] for picture in feeds]) for model in probe)
    noise = ((shifted - logits) ** 2).sum() / ((logits - logits.mean(0)) ** 2).sum()
    fidelity = Fidelity(plain, layers.last, feeds)
    assert fidelity.noise(off) == pytest.approx([noise], rel=1e-5)
    assert fidelity.noise(plain) == [0.0]


def test_channels_of_a_convolution_are_its_second_axis():
    build = Builder()
    x = build.conv(build.pixels(), "backbone.stem", 3, 4)
    build.conv(x, "head.classifier", 4, 3, size=1)
    graph = build.model("head.classifier_out", FREE)
    off = onnx.ModelProto()
    off.CopyFrom(graph)
    bias = next(tensor for tensor in off.graph.initializer if tensor.name.endswith("classifier.bias"))
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32([0, 0, 1]), bias.name))
    feeds = pictures(3)
    maps = np.concatenate([run(graph, picture)[0] for picture in feeds])
    noise = maps[:, 0].size / ((maps - maps.mean((0, 2, 3), keepdims=True)) ** 2).sum()
    assert Fidelity(graph, layers_of(graph).last, feeds).noise(off) == pytest.approx([noise], rel=1e-5)


def test_ranges_are_the_extremes_over_pictures_of_any_size(plain, tmp_path):
    feeds = [*pictures(3), *pictures(2, (9, 31), seed=5)]
    found = ranges(plain, feeds, tmp_path)
    probe = onnx.ModelProto()
    probe.CopyFrom(plain)
    probe.graph.output.append(onnx.helper.make_tensor_value_info("b", 1, None))
    values = [run(probe, picture)[-1] for picture in feeds]
    low, high = found["b"].range_value
    assert low.item() == pytest.approx(min(value.min() for value in values), rel=1e-6)
    assert high.item() == pytest.approx(max(value.max() for value in values), rel=1e-6)
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------------- what is left out of it


def test_a_stage_that_int8_spoils_is_found_and_left_out(spoiled, plain, tmp_path):
    _, report, seen = quantised(tmp_path, spoiled, method="static", least_snr=10)
    hurt = [row for row in report.left_out if row.reason == "loses too much"]
    assert [row.name for row in hurt] == ["backbone.stages.1"]
    assert report.quantised == 3
    assert report.snr >= 10
    assert report.evaluations <= 2 + 2 * 4
    done = [news for news in seen if "loses" in news[0]]
    assert [count for _, count, _ in done] == list(range(2, report.evaluations + 1))
    assert all(count <= most for _, count, most in done)
    _, control, _ = quantised(tmp_path, plain, method="static", least_snr=10)
    assert not [row for row in control.left_out if row.reason == "loses too much"]
    assert control.evaluations == 1


def test_what_is_told_is_what_the_file_does(spoiled, tmp_path):
    model, report, _ = quantised(tmp_path, spoiled, method="static", least_snr=10)
    feeds = pictures(24)
    compared = [feeds[index * 24 // 8] for index in range(8)]
    noise = Fidelity(spoiled, layers_of(spoiled).last, compared).noise(model)
    assert decibels(max(noise)) == pytest.approx(report.snr, abs=0.01)
    assert report.pictures == 8
    text = "\n".join(report.lines())
    assert f"{report.snr:.1f} dB" in text
    assert "backbone.stages.1 (1 layers, 0.000576 M): loses too much" in text
    assert "backbone.stages.1: loses too much" in report.kept_float32()


def test_the_way_to_ranges_is_chosen_by_measure(plain, spoiled, tmp_path):
    assert quantised(tmp_path, plain)[1].method == "static"
    assert quantised(tmp_path, spoiled, least_snr=10)[1].method == "static"  # mostly convolutions


def test_without_pictures_ranges_are_dynamic_and_nothing_is_measured(plain, tmp_path):
    model, report, seen = quantised(tmp_path, plain, number=0)
    assert (report.method, report.snr, report.evaluations, report.pictures) == ("dynamic", None, 0, 0)
    assert seen == []
    assert "no picture was looked at" in report.lines()[0]
    (scores,) = run(model, pictures(1)[0])
    assert np.isfinite(scores).all()


def test_two_files_of_one_are_the_same(plain, tmp_path):
    first = quantised(tmp_path, plain)[0].SerializeToString(deterministic=True)
    assert quantised(tmp_path, plain)[0].SerializeToString(deterministic=True) == first


def test_what_cannot_be_is_refused(plain, tmp_path):
    with pytest.raises(UsageError, match="without pictures"):
        quantised(tmp_path, plain, number=0, method="static")
    with pytest.raises(ModelFileError, match=r"no part of it is within 100 dB.*take float16"):
        quantised(tmp_path, plain, least_snr=100)
    build = Builder()
    build.conv(build.conv(build.pixels(), "backbone.stem", 3, 4), "head.classifier", 4, 2)
    with pytest.raises(UsageError, match="no layer that could be of int8"):
        quantised(tmp_path, build.model("head.classifier_out", FREE))
    build = Builder()
    x = build.conv(build.conv(build.pixels(), "backbone.stem", 3, 4), "backbone.stages.0", 4, 4)
    build.conv(x, "head.classifier", 4, 2)
    with pytest.raises(UsageError, match="no layers but convolutions"):
        quantised(tmp_path, build.model("head.classifier_out", FREE), method="dynamic")


def test_the_float32_graph_is_not_changed(plain):
    before = plain.SerializeToString(deterministic=True)
    Quantizer(plain, "dynamic", 7).apply(layers_of(plain).inner)
    assert plain.SerializeToString(deterministic=True) == before
