"""Settings for a model, and random shapes that no formula here was derived from; used by tests and benches."""

import itertools
import random
from dataclasses import replace

from helpers.architectures import FAMILIES, ModelSpec

CONTEXTS, CACHES, UBATCHES = (512, 2048, 8192, 32768), ("f16", "q8_0", "q4_0"), (128, 512)


def grid(spec):
    """Settings as keywords: contexts, caches, flash attention and micro-batches, where llama.cpp takes them."""
    for n_ctx, cache, flash_attn, n_ubatch in itertools.product(CONTEXTS, CACHES, (True, False), UBATCHES):
        caches = {"cache_type_k": cache, "cache_type_v": cache if flash_attn else "f16"}  # as llama.cpp demands
        fits = cache == "f16" or spec.n_embd_head_k % 32 == 0
        if fits and (not spec.kv_lora_rank or len(set(caches.values())) == 1):
            yield {"n_ctx": n_ctx, "flash_attn": flash_attn, "n_ubatch": n_ubatch, **caches}


HEADS = (32, 64, 80, 96, 128, 192, 256)
VOCABULARIES = (32_000, 49_152, 128_256, 151_936, 262_144)
PATTERNS = {"gemma2": (2, 3), "gemma3": (6, 4), "gpt-oss": (2, 3)}
PARTLY_ROTATED = ("phi2", "gptneox")


def random_spec(pick, family=None):
    """A shape that llama.cpp accepts, unlike any model's."""
    family = family or pick.choice(sorted(FAMILIES))
    flags = FAMILIES[family]
    head, n_head_kv = pick.choice(HEADS), pick.choice((1, 2, 3, 4, 8, 16))
    n_head = n_head_kv * pick.choice((1, 2, 4, 7, 8))
    width = n_head * head
    n_embd = width if "as_wide" in flags else pick.choice((width, 64 * pick.randint(4, 96)))
    spec = ModelSpec(
        name=f"random-{family}",
        architecture=family,
        n_layer=pick.choice((1, 2, 3, 5, 6, 7, 12, 16, 26, 32)),
        n_embd=n_embd,
        n_head=n_head,
        n_head_kv=n_head_kv,
        n_embd_head_k=head,
        n_embd_head_v=head,
        n_ff=pick.choice((64 * pick.randint(4, 320), max(64, int(n_embd * pick.uniform(1.5, 8)) // 64 * 64))),
        n_vocab=pick.choice((*VOCABULARIES, pick.randint(1_000, 300_000))),
        n_ctx_train=8192,
        tied="tied_only" in flags or ("never_tied" not in flags and pick.random() < 0.5),
        rope_freqs=family == "llama" and pick.random() < 0.3,
        n_rot=pick.choice((0, head // 2, 16)) if family in PARTLY_ROTATED else 0,
    )
    if "windows_only" in flags or (family in PATTERNS and pick.random() < 0.8):
        windows = {"n_swa": pick.choice((128, 512, 1024, 4096)), "swa_pattern": pick.choice(PATTERNS[family])}
        spec = replace(spec, **windows)
    if "experts_only" in flags or ("experts" in flags and pick.random() < 0.4):
        spec = replace(spec, **_random_experts(pick, family))
    if "mla" in flags:
        spec = replace(spec, **_random_latent(pick))
    return spec


def _random_experts(pick, family):
    n_expert = pick.choice((2, 4, 8, 16, 60, 64, 128))
    experts = {"n_expert": n_expert, "n_expert_used": pick.randint(1, min(n_expert, 8))}
    if family != "llama":
        experts["n_ff_exp"] = 64 * pick.randint(2, 60)
    if family == "deepseek2":
        experts |= {"n_expert_shared": pick.choice((1, 2, 4)), "n_layer_dense_lead": pick.choice((0, 1, 2, 3))}
    return experts


def _random_latent(pick):
    rank, n_rot = pick.choice((128, 256, 512)), pick.choice((32, 64))
    return {
        "kv_lora_rank": rank,
        "n_rot": n_rot,
        "n_head_kv": 1,
        "n_embd_head_k": rank + n_rot,
        "n_embd_head_v": rank,
        "n_embd_head_k_mla": n_rot + pick.choice((32, 64, 128)),
        "n_embd_head_v_mla": pick.choice((32, 64, 128)),
    }


def random_settings(pick):
    """Settings as keywords; llama.cpp accepts all of them for a random spec."""
    flash_attn = pick.random() < 0.6
    n_parallel = pick.choice((1, 1, 1, 2, 3, 4))
    plain, cache_types = ("f16", "f16", "bf16", "f32"), ("f16", "q8_0", "q4_0", "q5_1", "iq4_nl", "f32")
    return {
        "n_ctx": pick.choice((256, 512, 1000, 2048, 4096, 8192, 20_000, 32_768)),
        "cache_type_k": "f16",
        "cache_type_v": "f16",
        "flash_attn": flash_attn,
        "n_batch": pick.choice((2048, 512, 256)),
        "n_ubatch": pick.choice((32, 100, 128, 512, 2048)),
        "n_parallel": n_parallel,
        "kv_unified": pick.random() < 0.5,
        "swa_full": pick.random() < 0.2,
        "n_outputs_max": pick.choice((0, n_parallel, n_parallel, 64)),
        "cache": (pick.choice(cache_types), pick.choice(cache_types if flash_attn else plain)),
    }


def random_case(pick, family=None):
    """(spec, settings) that go together: quantized caches only where the heads are whole blocks."""
    spec, settings = random_spec(pick, family), random_settings(pick)
    cache = settings.pop("cache")
    if spec.kv_lora_rank:  # keys and values are one
        cache = cache[1], cache[1]
    if spec.n_embd_head_k % 32 == 0:
        settings["cache_type_k"], settings["cache_type_v"] = cache
    return spec, settings


def random_cases(n, seed=1, family=None):
    """`n` cases, the same for the same seed."""
    pick = random.Random(f"{seed}-{family}")
    return [random_case(pick, family) for _ in range(n)]
