"""`helpers.fit`: statuses at their boundaries, GPUs, and levers that keep what they promise."""

import dataclasses
import itertools
import random
from types import SimpleNamespace

import pytest

from helpers import fit, hardware, memory, mixes, models, units
from helpers.hardware import Gpu, Machine, Reading

GIB, MIB = units.GIB, units.MIB


def needs(weights, rest=0):
    """An estimate of `weights` file bytes (which can be dropped) and `rest` anonymous bytes (which cannot)."""
    return memory.Estimate(weights, rest, 0, 0, 0, "formula")


def on_gpu(cpu, gpu, cpu_rest=0):
    """An estimate split over both devices."""
    blank = dict.fromkeys(memory.PARTS, 0)
    devices = {"cpu": {**blank, "weights": cpu, "kv": cpu_rest}, "gpu": {**blank, "weights": gpu}}
    return memory.Estimate(cpu + gpu, cpu_rest, 0, 0, 0, "formula", by_device=devices)


def machine(free, total=None, swap=0, vram=0):
    made = Machine.pretend("test", free, total, vram_bytes=vram)
    return dataclasses.replace(made, swap_free_bytes=Reading(swap, "test"))


def unified(free, card_free, swap=0):
    gpu = Gpu("Apple M", Reading(card_free), Reading(card_free), "metal", unified=True)
    return dataclasses.replace(machine(free, swap=swap), gpus=(gpu,), unified_memory=True)


# --- statuses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "free, spare, status",
    [
        (8 * GIB, 512 * MIB, "fits"),
        (8 * GIB, 512 * MIB - 1, "tight"),
        (8 * GIB, 0, "tight"),
        (8 * GIB, -1, "swaps"),
        (2 * GIB, 256 * MIB, "fits"),  # an eighth of little
        (2 * GIB, 256 * MIB - 1, "tight"),
        (100 * GIB, 5 * GIB, "fits"),  # 5 % of a lot
        (100 * GIB, 5 * GIB - 1, "tight"),
    ],
)
def test_free_memory_decides(free, spare, status):
    judged = fit.judge(needs(free - spare), machine(free, 2 * free))
    assert judged.status == status
    assert (judged.needed_bytes, judged.free_bytes, judged.total_bytes) == (free - spare, free, 2 * free)
    assert judged.spare_bytes == spare
    assert judged.limit == "memory"


@pytest.mark.parametrize(
    "weights, rest, swap, status",
    [
        (5, 2, 0, "fits"),
        (7, 4, 0, "swaps"),  # pages of the file can be dropped
        (8, 8, 0, "swaps"),  # what cannot be dropped just fits, the sum is all the machine has
        (7, 9, 0, "no"),  # what cannot be dropped does not fit
        (9, 8, 0, "no"),  # more than the machine has
        (9, 8, 1, "swaps"),  # swap takes some of it
        (6, 9, 1, "swaps"),
        (5, 10, 1, "no"),
        (9, 9, 1, "no"),
    ],
)
def test_file_pages_may_be_dropped_and_the_rest_only_swapped(weights, rest, swap, status):
    here = machine(8 * GIB, 16 * GIB, swap * GIB)
    assert fit.judge(needs(weights * GIB, rest * GIB), here).status == status


def test_one_byte_decides_between_swaps_and_no():
    here = machine(8 * GIB, 16 * GIB, swap=GIB)
    assert fit.judge(needs(GIB, 9 * GIB), here).status == "swaps"
    assert fit.judge(needs(GIB, 9 * GIB + 1), here).status == "no"
    assert fit.judge(needs(16 * GIB, GIB), here).status == "swaps"
    assert fit.judge(needs(16 * GIB + 1, GIB), here).status == "no"


def test_more_free_memory_never_makes_a_verdict_worse():
    order, draw = fit.STATUSES.index, random.Random(1)
    for _ in range(300):
        estimate = needs(draw.randrange(40 * GIB), draw.randrange(8 * GIB))
        frees = sorted(draw.randrange(48 * GIB) for _ in range(20))
        statuses = [order(fit.judge(estimate, machine(free, 48 * GIB)).status) for free in frees]
        assert statuses == sorted(statuses, reverse=True)


def test_nothing_free_at_all():
    assert fit.judge(needs(GIB), machine(0, 8 * GIB)).status == "swaps"
    assert fit.judge(needs(GIB), machine(0, 0)).status == "no"
    assert fit.judge(needs(0), machine(0, 0)).status in ("fits", "tight")


def test_the_sentence_has_the_numbers_and_the_word():
    good = fit.judge(needs(5 * GIB), machine(7 * GIB, 8 * GIB))
    assert good.sentence == "Needs 5.0 GiB of the 7.0 GiB free: fits, 2.0 GiB spare."
    bad = fit.judge(needs(9 * GIB), machine(7 * GIB, 8 * GIB))
    assert bad.sentence == "Needs 9.0 GiB but only 7.0 GiB is free: does not fit, 2.0 GiB too much."
    assert "8.0 GiB in all, 1.0 GiB used by other programs, 7.0 GiB free" in bad.reasons[0]


def test_a_swapping_verdict_says_how_much_to_free():
    judged = fit.judge(needs(9 * GIB), machine(7 * GIB, 16 * GIB))
    assert judged.status == "swaps"
    assert "2.0 GiB" in judged.reasons[1]


def test_the_text_of_a_verdict_is_escaped_in_html():
    gpu = Gpu("<script>alert(1)</script>", Reading(GIB), Reading(GIB), "cuda")
    here = dataclasses.replace(machine(8 * GIB), gpus=(gpu,))
    judged = fit.judge(on_gpu(GIB, GIB), here)
    assert "<script>" in str(judged)
    assert "<script>" not in judged._repr_html_()


# --- the machine is passed in --------------------------------------------------------------------------------------


def test_it_never_looks_at_the_machine(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("fit looked at the machine")

    monkeypatch.setattr(hardware, "detect", refuse)
    fake = SimpleNamespace(
        ram_available_bytes=6 * GIB, ram_total_bytes=8 * GIB, swap_free_bytes=0, gpus=(), unified_memory=False
    )
    estimate = memory.estimate(models.get("llama-3.1-8b"), "Q8_0", n_ctx=8192)
    judged = fit.verdict(estimate, fake)
    assert judged.status == "no"
    assert judged.levers
    assert fit.ladder(models.get("llama-3.1-8b"), fake)
    assert not hasattr(fit, "hardware")


# --- graphics cards ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "gpu, status, limit",
    [
        (18 * GIB, "fits", "video memory"),  # both fit; the card has less to spare
        (19 * GIB, "fits", "video memory"),
        (19 * GIB + 1, "tight", "video memory"),  # less than 5 % of it stays
        (20 * GIB, "tight", "video memory"),
        (20 * GIB + 1, "no", "video memory"),
        (GIB, "fits", "memory"),
    ],
)
def test_the_card_may_bind(gpu, status, limit):
    judged = fit.judge(on_gpu(4 * GIB, gpu), machine(8 * GIB, vram=20 * GIB))
    assert (judged.status, judged.limit) == (status, limit)


def test_memory_may_bind_beside_a_card():
    judged = fit.judge(on_gpu(4 * GIB, GIB, cpu_rest=5 * GIB), machine(8 * GIB, vram=8 * GIB))
    assert (judged.status, judged.limit) == ("no", "memory")
    assert judged.needed_bytes == 9 * GIB
    assert len(judged.reasons) == 2  # both limits are explained


def test_with_all_layers_on_the_card_its_memory_is_named_unless_the_other_is_worse():
    needs = memory.estimate(models.get("llama-3.1-8b"), "Q4_K_M", n_gpu_layers=-1)
    roomy = machine(8 * GIB, vram=24 * GIB)  # far more to spare on the card than beside it
    assert fit.judge(needs, roomy).limit == "video memory"
    assert fit.judge(needs, roomy).needed_bytes == sum(needs.by_device["gpu"].values())
    assert fit.judge(needs, machine(GIB // 4, GIB, vram=24 * GIB)).limit == "memory"
    half = memory.estimate(models.get("llama-3.1-8b"), "Q4_K_M", n_gpu_layers=16)
    assert fit.judge(half, roomy).limit == "memory"


def test_no_card_at_all():
    judged = fit.verdict(memory.estimate(models.get("smollm2-135m"), "Q4_1", n_gpu_layers=-1), machine(8 * GIB))
    assert (judged.status, judged.limit) == ("no", "video memory")
    assert any("No GPU was found" in reason for reason in judged.reasons)
    assert any(lever.change == {"n_gpu_layers": 0} and lever.status == "fits" for lever in judged.levers)


def test_unified_memory_holds_both_shares():
    judged = fit.judge(on_gpu(2 * GIB, 4 * GIB), unified(8 * GIB, 6 * GIB))
    by_limit = {"memory": 6 * GIB, "video memory": 4 * GIB}
    assert judged.needed_bytes == by_limit[judged.limit]
    assert judged.status == "fits"
    assert fit.judge(on_gpu(4 * GIB, 4 * GIB), unified(8 * GIB - 1, 6 * GIB)).limit == "memory"
    apart = fit.judge(on_gpu(4 * GIB, 4 * GIB), machine(8 * GIB - 1, vram=6 * GIB))
    assert apart.status == "fits"


def test_a_unified_card_has_no_more_than_the_memory_that_is_free():
    judged = fit.judge(on_gpu(0, 3 * GIB), unified(2 * GIB, 6 * GIB, swap=8 * GIB))  # a card does not swap
    assert (judged.status, judged.limit) == ("no", "video memory")
    assert judged.free_bytes == 2 * GIB


def test_several_cards_add_up():
    cards = tuple(Gpu(f"card {i}", Reading(4 * GIB), Reading(3 * GIB), "cuda") for i in range(2))
    judged = fit.judge(on_gpu(GIB, 5 * GIB), dataclasses.replace(machine(64 * GIB), gpus=cards))
    assert (judged.status, judged.free_bytes, judged.total_bytes) == ("fits", 6 * GIB, 8 * GIB)
    assert any("card 0, card 1" in reason for reason in judged.reasons)


# --- levers --------------------------------------------------------------------------------------------------------

CHOICES = [
    ("llama-3.1-8b", "Q8_0", {"n_ctx": 8192}),
    ("llama-3.1-8b", "Q4_K_M", {"n_ctx": 131072, "n_parallel": 4}),
    ("llama-3.1-8b", "F16", {"n_ctx": 2048, "flash_attn": False}),
    ("qwen3-8b", "Q2_K", {"n_ctx": 512, "n_ubatch": 128, "n_outputs_max": 1}),
    ("gemma-3-1b", "Q4_K_M", {"n_ctx": 32768, "cache_type_k": "q8_0", "cache_type_v": "q8_0"}),
    ("phi-3-mini", "Q6_K", {"n_ctx": 4096, "n_parallel": 2, "n_outputs_max": 2}),
    ("mistral-7b-v0.3", "Q4_K_M", {"n_ctx": 0, "repack": "avx2"}),
    ("smollm2-135m", "Q4_1", {}),
]
MACHINES = [machine(GIB), machine(4 * GIB, 8 * GIB), machine(7 * GIB, 8 * GIB, swap=2 * GIB), machine(64 * GIB)]


def pulled(estimate, change):
    """The estimate after a lever, worked out without `fit`."""
    change = dict(change)
    spec = models.get(change.pop("model")) if "model" in change else estimate.spec
    quantization = change.pop("quantization", estimate.quantization)
    return memory.estimate(spec, quantization, **{**estimate.settings, **change})


@pytest.mark.parametrize("name, quantization, settings", CHOICES)
@pytest.mark.parametrize("here", MACHINES, ids=range(len(MACHINES)))
def test_levers_keep_what_they_promise(name, quantization, settings, here):
    estimate = memory.estimate(models.get(name), quantization, **settings)
    levers = fit.verdict(estimate, here).levers
    assert [lever.saved_bytes for lever in levers] == sorted((lever.saved_bytes for lever in levers), reverse=True)
    assert len({lever.name for lever in levers}) == len(levers)
    for lever in levers:
        after = pulled(estimate, lever.change)  # raises where the change is impossible
        assert lever.saved_bytes == estimate.total_bytes - after.total_bytes > 0
        assert lever.status == fit.judge(after, here).status
        assert lever.cost
        assert fit.SAYS[lever.status] in str(lever)
        assert units.show(lever.saved_bytes) in str(lever)


@pytest.mark.parametrize("n_gpu_layers", [1, 16, -1])
@pytest.mark.parametrize("vram", [2, 6, 24])
def test_levers_count_what_they_save_where_it_binds(n_gpu_layers, vram):
    here = machine(6 * GIB, 8 * GIB, vram=vram * GIB)
    estimate = memory.estimate(models.get("llama-3.1-8b"), "Q6_K", n_ctx=8192, n_gpu_layers=n_gpu_layers)
    judged = fit.verdict(estimate, here)
    device = "gpu" if judged.limit == "video memory" else "cpu"
    for lever in judged.levers:
        after = pulled(estimate, lever.change)
        share = after.by_device or {"cpu": after.parts(), "gpu": {}}
        assert lever.saved_bytes == sum(estimate.by_device[device].values()) - sum(share[device].values()) > 0
        assert lever.status == fit.judge(after, here).status


def test_fewer_layers_on_a_card_that_is_too_small():
    here = machine(16 * GIB, vram=4 * GIB)
    estimate = memory.estimate(models.get("llama-3.1-8b"), "Q4_K_M", n_ctx=4096, n_gpu_layers=-1)
    lever = next(lever for lever in fit.levers(estimate, here) if "n_gpu_layers" in lever.change)
    n = lever.change["n_gpu_layers"]
    assert lever.status in ("fits", "tight")
    assert 0 < n < 33
    one_more = pulled(estimate, {"n_gpu_layers": n + 1})
    assert fit.judge(one_more, here).status == "no"  # as many layers as go on the card


def changes(estimate, here=None):
    return [lever.change for lever in fit.levers(estimate, here or machine(6 * GIB, 8 * GIB))]


def names_of(found, key):
    return [change[key] for change in found if key in change]


def test_no_quantized_cache_where_heads_are_no_whole_blocks():
    odd = dataclasses.replace(models.get("llama-3.1-8b"), n_embd_head_k=80, n_embd_head_v=80)
    assert not names_of(changes(memory.estimate(odd, "Q4_K_M")), "cache_type_k")
    even = memory.estimate(models.get("llama-3.1-8b"), "Q4_K_M")
    assert names_of(changes(even), "cache_type_k") == ["q8_0"]


def test_a_quantized_cache_brings_flash_attention_along():
    estimate = memory.estimate(models.get("llama-3.1-8b"), "Q4_K_M", n_ctx=32768, flash_attn=False)
    change = next(change for change in changes(estimate) if "cache_type_k" in change)
    assert change == {"cache_type_k": "q8_0", "cache_type_v": "q8_0", "flash_attn": True}


def test_levers_that_are_pulled_already_are_not_offered():
    settings = {"n_ctx": 512, "cache_type_k": "q8_0", "cache_type_v": "q8_0", "n_ubatch": 128, "n_outputs_max": 1}
    estimate = memory.estimate(models.get("smollm2-135m"), "IQ2_M", **settings)
    assert not [change for change in changes(estimate) if set(change) & set(settings)]
    assert not names_of(changes(estimate), "quantization")  # nothing on the ladder is clearly smaller
    assert not names_of(changes(estimate), "model")  # it is the smallest


def test_shorter_context_takes_the_longest_that_fits():
    here = machine(7 * GIB, 8 * GIB)
    estimate = memory.estimate(models.get("llama-3.1-8b"), "Q4_K_M", n_ctx=131072)
    [n_ctx] = names_of(changes(estimate, here), "n_ctx")
    assert fit.judge(pulled(estimate, {"n_ctx": n_ctx}), here).status in ("fits", "tight")
    longer = fit.CONTEXTS[fit.CONTEXTS.index(n_ctx) + 1]
    assert fit.judge(pulled(estimate, {"n_ctx": longer}), here).status not in ("fits", "tight")


def test_context_zero_means_the_models_own():
    [n_ctx] = names_of(changes(memory.estimate(models.get("llama-3.1-8b"), "Q4_K_M", n_ctx=0)), "n_ctx")
    assert 512 <= n_ctx < 131072


def test_no_shorter_context_than_the_shortest():
    assert not names_of(changes(memory.estimate(models.get("llama-3.1-8b"), "Q4_K_M", n_ctx=512)), "n_ctx")


@pytest.mark.parametrize("n_ctx", [2048, 8192, 32768, 40960, 131072])
@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen3-8b", "mistral-7b-v0.3"])
def test_a_smaller_model_was_trained_for_as_long_a_context(name, n_ctx):
    spec = models.get(name)
    for other in names_of(changes(memory.estimate(spec, "Q8_0", n_ctx=n_ctx)), "model"):
        smaller = models.get(other)
        assert smaller.n_ctx_train >= min(n_ctx, spec.n_ctx_train)
        assert smaller.n_params < spec.n_params


def test_the_smaller_model_is_the_largest_that_fits():
    here = machine(3 * GIB)
    estimate = memory.estimate(models.get("llama-3.1-8b"), "Q8_0", n_ctx=2048)
    [name] = names_of(changes(estimate, here), "model")
    better = [n for n in models.names() if models.get(name).n_params < models.get(n).n_params < 6e9]
    for other in better:
        assert fit.judge(pulled(estimate, {"model": other}), here).status not in ("fits", "tight")


def test_one_slot_keeps_one_output():
    estimate = memory.estimate(models.get("llama-3.1-8b"), "Q4_K_M", n_ctx=512, n_parallel=16, n_outputs_max=16)
    change = next(change for change in changes(estimate) if "n_parallel" in change)
    assert change == {"n_parallel": 1, "n_outputs_max": 1}


def test_a_second_copy_of_the_weights_can_be_left_out():
    estimate = memory.estimate(models.get("llama-3.1-8b"), "Q4_K_M", repack="avx2")
    lever = next(lever for lever in fit.levers(estimate, machine(64 * GIB)) if "repack" in lever.change)
    assert lever.saved_bytes == estimate.repacked_bytes > GIB


def test_a_real_files_types_have_no_quantization_lever_but_the_others():
    spec = models.get("llama-3.1-8b")
    estimate = memory.estimate(spec, mixes.tensor_types(spec, "Q4_K_M"), n_ctx=8192)
    found = changes(estimate)
    assert not [change for change in found if "quantization" in change and "model" not in change]
    assert names_of(found, "n_ctx")
    assert names_of(found, "model")


def test_a_family_nobody_modelled_still_gets_a_verdict():
    odd = dataclasses.replace(models.get("llama-3.1-8b"), architecture="unheard-of")
    judged = fit.verdict(memory.estimate(odd, 5 * GIB, n_ctx=8192), machine(4 * GIB))
    assert judged.status == "no"
    assert any("n_ctx" in lever.change for lever in judged.levers)


def test_an_estimate_without_a_shape_has_no_levers():
    assert fit.levers(needs(9 * GIB), machine(GIB)) == []


def test_the_engines_figures_are_not_set_against_the_formulas():
    closed = memory.estimate(models.get("llama-3.1-8b"), "Q4_K_M", n_ctx=8192)
    engines = dataclasses.replace(closed, source="engine", compute_bytes=closed.compute_bytes + 77 * MIB)
    assert fit.levers(engines, machine(7 * GIB)) == fit.levers(closed, machine(7 * GIB))


def test_an_impossible_change_is_none():
    estimate = memory.estimate(models.get("llama-3.1-8b"), "Q4_K_M", flash_attn=False)
    assert fit.apply(estimate, {"cache_type_v": "q8_0"}) is None
    assert fit.apply(estimate, {"n_ctx": -1}) is None


# --- ladder, rule of thumb -----------------------------------------------------------------------------------------


def test_the_ladder_is_one_row_per_quantization():
    spec, here = models.get("llama-3.1-8b"), machine(7 * GIB, 8 * GIB)
    rows = fit.ladder(spec, here, n_ctx=4096)
    assert [name for name, _, _ in rows] == list(fit.LADDER)
    for name, estimate, judged in rows:
        assert estimate == memory.estimate(spec, name, n_ctx=4096)
        assert judged == fit.judge(estimate, here)
    sizes = [estimate.total_bytes for _, estimate, _ in rows]
    assert sizes == sorted(sizes, reverse=True)
    statuses = [fit.STATUSES.index(judged.status) for _, _, judged in rows]
    assert statuses == sorted(statuses, reverse=True)
    assert {judged.status for _, _, judged in rows} >= {"no", "fits"}


def test_models_that_come_in_one_form_are_judged_and_offered_in_it():
    gpt_oss, desktop = models.get("gpt-oss-20b"), machine(8 * GIB)
    assert [name for name, *_ in fit.ladder(gpt_oss, desktop)] == ["MXFP4"]
    [row] = fit.compare(machine(16 * GIB), names=["gpt-oss-20b"], n_ctx=4096)
    assert row.best == "MXFP4" and list(row.cells) == ["MXFP4"]
    levers = fit.levers(memory.estimate(gpt_oss, "MXFP4", n_ctx=8192), desktop)
    [smaller] = [lever.change for lever in levers if "model" in lever.change]
    assert smaller["quantization"] == "Q4_K_M"  # MXFP4 is no form of the smaller model
    assert not [lever for lever in levers if set(lever.change) == {"quantization"}]
    [to_it] = [
        c for c in changes(memory.estimate(models.get("llama-3.1-70b"), "Q8_0"), machine(14 * GIB)) if "model" in c
    ]
    assert to_it["quantization"] == fit.suited(models.get(to_it["model"]), "Q8_0")


def test_the_rule_of_thumb_is_blind_to_everything_but_the_file():
    spec = models.get("llama-3.1-8b")
    estimates = [
        memory.estimate(spec, "Q4_K_M", n_ctx=n, n_parallel=p) for n, p in itertools.product((512, 65536), (1, 4))
    ]
    assert {fit.rule_of_thumb_bytes(estimate) for estimate in estimates} == {round(1.2 * estimates[0].weights_bytes)}
