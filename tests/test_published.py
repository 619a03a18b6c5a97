"""The accuracy that `bench_published` reached, so that losing it is red; and the split over GPUs, by hand."""

import dataclasses
import re
import statistics

import bench_published as bench
import pytest
from quoted import spread

from helpers import fit, formats, memory, mixes, models, units
from helpers.hardware import Machine
from helpers.memory import Settings

LLAMA, SMOLLM2 = models.get("llama-3.1-8b"), models.get("smollm2-135m")


def share(cases, most):
    """The share of cases whose error is at most this."""
    return sum(case.error <= most for case in cases) / len(cases)


def errors(cases):
    return [case.error for case in cases]


# The rows


def test_every_row_has_a_source_and_a_figure_or_a_reason():
    for row in bench.file_rows():
        assert row["source"].strip() and int(row["bytes"]) > 0
        assert row["left_out"] or row["quantization"] in formats.QUANTIZATIONS
    for row in bench.load_rows():
        assert row["source"].strip() and row["model"]
        assert row["printed"] or row["left_out"]
        assert all(row["left_out"].values())


def test_no_row_holds_a_path_of_a_machine():
    for path in bench.PUBLISHED.iterdir():
        found = re.findall(r"""(?:^|[\s"'(,])(?:/\w+|[A-Z]:\\)[^\s"']*""", path.read_text(encoding="utf-8"))
        assert not found, path.name


def test_the_rows_compared_do_not_melt_away():
    assert len(bench.file_cases(catalogue=True, header=False)) >= 139
    assert len(bench.file_cases(header=False)) >= 195
    assert len(bench.kv_cases()) >= 53 and len(bench.kv_cases(fork=True)) >= 77
    assert len(bench.device_cases("weights", gpu=True)) >= 28
    assert len(bench.kv_device_cases()) >= 47
    assert len(bench.total_cases()) >= 18


# Files


@pytest.mark.parametrize(
    ("catalogue", "median", "p95"), [(True, 0.002, 0.012), (False, 0.001, 0.007), (None, 0.002, 0.01)]
)
def test_tensors_alone(catalogue, median, p95):
    found = errors(bench.file_cases(catalogue, header=False))
    assert statistics.median(found) < median
    assert spread(found)[2] < p95


@pytest.mark.parametrize("catalogue", [True, False])
def test_with_the_header(catalogue):
    found = errors(bench.file_cases(catalogue, header=True))
    assert statistics.median(found) < 0.00001
    assert spread(found)[2] < 0.0001


def test_tensors_to_the_byte():
    """Where a publisher counted the tensors' data alone, nothing is left to a header."""
    alone = [row for row in bench.file_rows() if row["kind"] == "tensors" and not row["left_out"]]
    assert len(alone) >= 3
    for row in alone:
        types = mixes.tensor_types(bench.spec_of(row), row["quantization"], imatrix=row["imatrix"])
        assert memory.weights_bytes(bench.spec_of(row), types) == int(row["bytes"]), row["model"]


def test_importance_matrices_explain_the_files_made_with_them():
    made_with = [row for row in bench.file_rows() if row["imatrix"] and not row["left_out"]]
    assert {row["quantization"] for row in made_with} >= {"Q4_0", "IQ4_XS"}
    for row in made_with:
        spec, n_bytes = bench.spec_of(row), int(row["bytes"])
        with_matrix = memory.file_bytes(spec, mixes.tensor_types(spec, row["quantization"], imatrix=True))
        if row["kind"] == "file":
            assert with_matrix == pytest.approx(n_bytes, rel=0.0001), row["model"]
            assert abs(memory.file_bytes(spec, row["quantization"]) - n_bytes) > 100 * abs(with_matrix - n_bytes)


@pytest.mark.parametrize("quantization", formats.QUANTIZATIONS)
def test_an_importance_matrix_changes_five_quantizations_only(quantization):
    for name in ("llama-3.1-8b", "smollm2-1.7b", "mixtral-8x7b", "llama-3.1-70b"):
        plain, matrix = (mixes.tensor_types(models.get(name), quantization, imatrix) for imatrix in (False, True))
        changed = {tensor.split(".")[2] for tensor in plain if plain[tensor] != matrix[tensor]}
        if quantization in ("IQ4_XS", "IQ4_NL", "Q4_0", "Q5_0"):
            assert len(changed) == 1 and changed < {"ffn_down", "ffn_down_exps"}
        else:
            assert changed <= ({"ffn_down", "ffn_down_exps", "attn_v"} if quantization == "IQ3_XXS" else set())


def test_every_vocabulary_of_the_catalogue_is_known():
    for name in models.names():
        spec = models.get(name)
        assert spec.n_vocab >= memory.VOCABULARIES[spec.vocabulary][1], name


@pytest.mark.parametrize("name", models.names())
def test_the_general_formula_for_a_vocabulary(name):
    spec = models.get(name)
    guess = memory.vocabulary_file_bytes(dataclasses.replace(spec, vocabulary=""))
    assert guess == pytest.approx(memory.vocabulary_file_bytes(spec), rel=0.4 if spec.tokenizer == "bpe" else 0.15)


def test_a_smaller_vocabulary_is_another_one():
    small = dataclasses.replace(LLAMA, n_vocab=1000)
    assert memory.vocabulary_file_bytes(small) == 40 * 1000


def test_a_file_is_its_header_and_its_tensors():
    types = mixes.tensor_types(SMOLLM2, "Q4_1")
    whole = memory.file_bytes(SMOLLM2, "Q4_1")
    assert (
        whole == memory.file_bytes(SMOLLM2, types) == memory.file_bytes(SMOLLM2, memory.weights_bytes(SMOLLM2, "Q4_1"))
    )
    assert abs(whole - 98_362_432) < 3_000  # the packaged file


# Loads


def test_the_cache_is_exact():
    assert share(bench.kv_cases(), 0) >= 0.95
    assert share(bench.kv_cases(fork=True), 0) == 1


@pytest.mark.parametrize(
    ("what", "has_it"),
    [
        ("sliding windows", lambda row, spec: spec.n_swa),
        ("MLA", lambda row, spec: spec.kv_lora_rank),
        ("quantized caches", lambda row, spec: row["settings"].get("cache_type_k", "f16") not in ("f16", "bf16")),
        ("several slots", lambda row, spec: row["settings"].get("n_parallel", 1) > 1),
        ("slots that share", lambda row, spec: row["settings"].get("kv_unified")),
        ("layers with different heads", lambda row, spec: isinstance(spec.n_head_kv, tuple)),
    ],
)
def test_the_cache_rows_cover(what, has_it):
    rows = [row for fork in (False, True) for row, _ in bench.compared("kv", fork)]
    assert any(has_it(row, bench.spec_of(row)) for row in rows), what


def test_weights_on_each_device():
    """Not within 1 %: a file whose converter wrote layer 10 before layer 9, so other layers got the larger type."""
    for gpu in (True, False, None):
        found = bench.device_cases("weights", gpu)
        assert statistics.median(errors(found)) == 0
        assert share(found, 0.01) >= 0.92 and max(errors(found)) < 0.04


def test_the_cache_on_each_gpu():
    assert share(bench.kv_device_cases(), 0) == 1
    assert share(bench.kv_device_cases(fork=True), 0) >= 0.9


def test_the_compute_buffer_beside_other_builds():
    assert share(bench.device_cases("compute"), 0.05) == 1
    on_gpu = bench.device_cases("compute", gpu=True)
    assert statistics.median(errors(on_gpu)) < 0.01
    assert share(on_gpu, 0.04) >= 0.96 and max(errors(on_gpu)) < 0.2  # `memory` says so beside every estimate
    assert share(bench.device_cases("compute", gpu=False, recent=True), 0) == 1


def test_no_rule_of_thumb_comes_near():
    ours = errors(bench.total_cases())
    assert statistics.median(ours) < 0.005 and max(ours) < 0.05
    for rule in bench.RULES:
        assert statistics.median(errors(bench.total_cases(rule))) > 20 * statistics.median(ours)


def test_the_drivers_band_is_the_published_one():
    least, most = bench.driver_band()
    assert memory.GPU_DRIVER_BAND.startswith(f"{least} to {most} MiB")
    assert least < memory.GPU_DRIVER_BYTES / units.MIB < most


# The split by hand


def counts(spec, **settings):
    devices = memory.layer_devices(spec, Settings(**settings))
    assert len(devices) == spec.n_layer + 1
    return [devices.count(device) for device in dict.fromkeys(devices)]


def test_layers_by_hand():
    # 33 with the output: 33 / 4 = 8.25, so numbers 0 to 8 lie below the first quarter, 9 to 16 below the half.
    assert counts(LLAMA, n_gpu_layers=-1, n_gpus=4) == [9, 8, 8, 8]
    assert counts(LLAMA, n_gpu_layers=99, n_gpus=2) == [17, 16]
    # Three quarters of 20 are 15; 13 stay on the host.
    assert counts(LLAMA, n_gpu_layers=20, n_gpus=2, tensor_split=(3, 1)) == [13, 15, 5]
    # A boundary that is met exactly belongs to the next: 11 of 33 are a third.
    assert counts(LLAMA, n_gpu_layers=33, n_gpus=3) == [11, 11, 11]
    assert counts(LLAMA, n_gpu_layers=1, n_gpus=2) == [32, 1]
    assert memory.layer_devices(LLAMA, Settings(n_gpu_layers=1, n_gpus=2))[-1] == "gpu0"


def test_a_gpu_without_a_share_gets_no_layer():
    needs = memory.estimate(LLAMA, n_gpu_layers=-1, n_gpus=3, tensor_split=(1, 0, 1))
    idle = needs.by_device["gpu1"]
    assert sum(idle.values()) == idle["overhead"] == memory.GPU_DRIVER_BYTES


@pytest.mark.parametrize("n_gpu_layers", [1, 7, 24, -1])
@pytest.mark.parametrize("name", ["llama-3.1-8b", "gemma-3-1b", "qwen2.5-vl-7b", "gpt-oss-20b", "gpt-3-175b"])
def test_several_gpus_hold_what_one_would(name, n_gpu_layers):
    spec = models.get(name)
    one = memory.estimate(spec, n_ctx=8192, n_gpu_layers=n_gpu_layers)
    for tensor_split in (None, (5, 2, 1), (0.1, 0.2, 0.7)):
        three = memory.estimate(spec, n_ctx=8192, n_gpu_layers=n_gpu_layers, n_gpus=3, tensor_split=tensor_split)
        assert list(three.by_device) == ["cpu", "gpu0", "gpu1", "gpu2"]
        for part in ("weights", "kv", "vision", "output"):
            assert three.gpu_parts()[part] == one.by_device["gpu"][part]
            assert three.by_device["cpu"][part] == one.by_device["cpu"][part]
        assert three.parts() == {
            part: sum(device[part] for device in three.by_device.values()) for part in memory.PARTS
        }
        assert three.gpu_parts()["overhead"] == 3 * memory.GPU_DRIVER_BYTES
        assert three.by_device["gpu0"]["vision"] == memory.vision_bytes(spec)


def test_one_gpu_keeps_its_name():
    needs = memory.estimate(LLAMA, n_gpu_layers=-1, tensor_split=(1,))
    assert list(needs.by_device) == ["cpu", "gpu"] and needs.gpu_parts() == needs.by_device["gpu"]
    assert memory.estimate(LLAMA).gpu_parts() == dict.fromkeys(memory.PARTS, 0)


def test_a_tied_embedding_is_copied_to_the_last_gpu():
    devices = memory.estimate(SMOLLM2, "Q8_0", n_gpu_layers=-1, n_gpus=2).by_device
    embedding = formats.tensor_bytes("Q8_0", (576, 49_152))
    assert devices["cpu"]["weights"] == embedding
    layer = (memory.weights_bytes(SMOLLM2, "Q8_0") - embedding - 4 * 576) // 30
    assert devices["gpu0"]["weights"] == 16 * layer  # of 31: numbers 0 to 15 lie below the half
    assert devices["gpu1"]["weights"] == 14 * layer + embedding + 4 * 576


def test_learned_positions_stay_on_the_host():
    spec = models.get("gpt-3-175b")
    types = mixes.tensor_types(spec, "F16")
    tables = ("token_embd.weight", "position_embd.weight")
    sizes = {"token_embd.weight": (spec.n_embd, spec.n_vocab), "position_embd.weight": (spec.n_embd, spec.n_ctx_train)}
    on_host = memory.estimate(spec, "F16", n_gpu_layers=-1).by_device["cpu"]["weights"]
    assert on_host == sum(formats.tensor_bytes(types[name], sizes[name]) for name in tables)


def test_weights_of_which_only_the_sum_is_known():
    needs = memory.estimate(LLAMA, 33_000_000, n_gpu_layers=17, n_gpus=2)  # 16 of 32 layers and the output
    assert [parts["weights"] for parts in needs.by_device.values()] == [16_500_000, 9_281_250, 7_218_750]


def test_pipelines_need_all_layers_on_several_gpus():
    def compute(**settings):
        needs = memory.estimate(LLAMA, n_ctx=8192, flash_attn=False, **settings)
        return {device: parts["compute"] for device, parts in needs.by_device.items()}

    inputs = 4 * 512 * 4096 + 4 * 512 * 8192  # embeddings and mask, 4 bytes without flash attention
    one, two = compute(n_gpu_layers=-1), compute(n_gpu_layers=-1, n_gpus=2)
    assert two["gpu1"] == one["gpu"] + 3 * inputs
    assert compute(n_gpu_layers=20, n_gpus=2)["gpu1"] == compute(n_gpu_layers=20)["gpu"] == one["gpu"]


def test_only_the_last_gpu_computes_logits():
    devices = memory.estimate(models.get("gemma-3-1b"), n_ctx=512, n_gpu_layers=-1, n_gpus=2).by_device
    assert devices["gpu0"]["compute"] < devices["gpu1"]["compute"] / 2


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"n_gpus": 0}, "n_gpus is 0; it must be a whole number from 1 to 16"),
        ({"n_gpus": 17}, "n_gpus is 17"),
        (
            {"n_gpus": 2, "tensor_split": (1, 2, 3)},
            r"tensor_split is \(1, 2, 3\); give one share for each of the 2 GPUs",
        ),
        ({"n_gpus": 2, "tensor_split": (1,)}, "tensor_split is"),
        ({"n_gpus": 2, "tensor_split": (1, -1)}, "tensor_split is"),
        ({"n_gpus": 2, "tensor_split": (0, 0)}, "tensor_split is"),
        ({"n_gpus": 2, "tensor_split": (1, float("nan"))}, "tensor_split is"),
        ({"n_gpus": 2, "tensor_split": ("1", "2")}, "tensor_split is"),
        ({"tensor_split": 3}, "tensor_split is 3"),
        ({"tensor_split": ()}, "tensor_split is"),
    ],
)
def test_splits_that_cannot_be(settings, says):
    with pytest.raises(ValueError, match=says):
        memory.estimate(LLAMA, n_gpu_layers=-1, **settings)


def test_a_split_may_be_a_list_and_settings_stay_hashable():
    settings = Settings(n_gpu_layers=-1, n_gpus=2, tensor_split=[3, 1])
    assert hash(settings) == hash(Settings(n_gpu_layers=-1, n_gpus=2, tensor_split=(3, 1)))
    assert memory.estimate(LLAMA, **dataclasses.asdict(settings)).settings["tensor_split"] == (3, 1)


@pytest.mark.parametrize("n_gpus", [1, 2, 3, 16])
def test_more_layers_never_take_memory_from_the_gpus(n_gpus):
    parts = [memory.estimate(LLAMA, n_gpu_layers=n, n_gpus=n_gpus).gpu_parts() for n in range(1, 34)]
    together = [part["weights"] + part["kv"] for part in parts]
    assert together == sorted(together)


# Judged by the cards


def two_cards(first, second):
    alone = Machine.pretend("first", 64 * units.GIB, vram_bytes=first)
    return dataclasses.replace(
        alone, gpus=alone.gpus + Machine.pretend("second", 64 * units.GIB, vram_bytes=second).gpus
    )


def test_each_card_is_judged_by_its_own_share():
    split = memory.estimate(LLAMA, "Q8_0", n_gpu_layers=-1, n_gpus=2)
    shares = [sum(split.by_device[device].values()) for device in ("gpu0", "gpu1")]
    fits = fit.judge(split, two_cards(*(2 * n for n in shares)))
    assert fits.status == "fits"
    # The same memory in all, but the second card is too small for its half.
    uneven = fit.judge(split, two_cards(2 * sum(shares) - shares[1] // 2, shares[1] // 2))
    assert (uneven.status, uneven.limit, uneven.needed_bytes) == ("no", "video memory", shares[1])


def test_an_estimate_for_more_cards_than_there_are():
    split = memory.estimate(SMOLLM2, n_gpu_layers=-1, n_gpus=3)
    judged = fit.judge(split, two_cards(24 * units.GIB, 24 * units.GIB))
    assert judged.status == "no"
    assert "Counted for 3 GPUs, but this machine has 2" in " ".join(judged.reasons)
