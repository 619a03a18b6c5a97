"""Recommendations, and many estimates at once."""

import itertools

import pytest

from helpers import fit, formats, hardware, memory, models, units


def laptop(free_gib, total_gib):
    return hardware.Machine.pretend("laptop", units.from_gib(free_gib), units.from_gib(total_gib))


@pytest.mark.parametrize("use", fit.USES)
@pytest.mark.parametrize("free_gib", [1.5, 5.5, 12, 27, 58, 120])
def test_every_recommendation_fits_and_serves_the_use(use, free_gib):
    machine = laptop(free_gib, free_gib * 1.3)
    choices = fit.recommend(machine, use, n_ctx=4096)
    assert len(choices) <= 5
    assert [choice.score for choice in choices] == sorted((choice.score for choice in choices), reverse=True)
    for choice in choices:
        assert use in choice.spec.uses and choice.spec.n_ctx_train >= 4096
        again = memory.estimate(choice.spec, choice.quantization, n_ctx=4096)
        assert fit.judge(again, machine).status == "fits" == choice.verdict.status
        assert units.show(again.total_bytes) in str(choice)


def test_the_quantization_is_the_largest_that_fits():
    machine = laptop(8, 12)
    for choice in fit.recommend(machine, "chat", most=50):
        ladder = (*fit.GOOD, *fit.LAST_RESORT)
        for larger in ladder[: ladder.index(choice.quantization)]:
            needs = memory.estimate(choice.spec, larger, n_ctx=8192)
            assert fit.judge(needs, machine).status != "fits"


def test_more_memory_never_recommends_less():
    scores = [fit.recommend(laptop(gib, gib + 2), "chat")[0].score for gib in (2, 4, 8, 16, 32, 64)]
    assert scores == sorted(scores)


def test_nothing_fits_a_tiny_machine():
    assert fit.recommend(laptop(0.05, 0.1)) == ()


def test_an_unknown_use_is_named():
    with pytest.raises(ValueError, match="poetry.*chat"):
        fit.recommend(laptop(8, 8), "poetry")


def test_active_weights_of_experts():
    assert models.get("llama-3.1-8b").n_params_active == models.get("llama-3.1-8b").n_params
    mixtral = models.get("mixtral-8x7b")
    assert 12.8e9 < mixtral.n_params_active < 13e9  # "uses 12.9B parameters per token", Mistral AI
    assert 3.5e9 < models.get("gpt-oss-20b").n_params_active < 4.3e9  # 3.6B without the embedding, OpenAI


def test_every_model_has_a_year_and_known_uses():
    for name in models.names():
        spec = models.get(name)
        assert 2018 < spec.year < 2030 and set(spec.uses) <= set(fit.USES), name


def test_the_grid_is_the_estimate():
    specs = [models.get(name) for name in ("smollm2-135m", "phi-3-mini", "gemma-3-1b", "qwen2.5-vl-7b", "phi-2")]
    quantizations, contexts, caches = ("F16", "Q4_K_M", "IQ2_XXS"), (512, 4096, 33000), ("f16", "q8_0")
    totals = memory.grid(specs, quantizations, contexts, caches, repack="avx2")
    possible = 0
    for spec, name, n_ctx, cache in itertools.product(specs, quantizations, contexts, caches):
        try:
            needs = memory.estimate(spec, name, n_ctx, cache, cache, repack="avx2")
        except ValueError:
            assert (spec.name, name, n_ctx, cache) not in totals
            continue
        possible += 1
        assert totals[spec.name, name, n_ctx, cache] == needs.total_bytes
    assert len(totals) == possible > 70


def test_the_grid_takes_the_whole_catalogue():
    specs = [models.get(name) for name in models.names()]
    assert len(memory.grid(specs, list(formats.QUANTIZATIONS), (2048,))) == len(specs) * len(formats.QUANTIZATIONS)
