"""`helpers.commands`: the same choice in Python, for llama-server and for Ollama."""

import dataclasses
import re
import shlex

import pytest

from helpers import commands, engine, fit, hardware, memory, models, panels, units
from helpers.hardware import Machine

LLAMA = models.get("llama-3.1-8b")
# One value off its default for every setting there is.
CHANGED = {
    "n_ctx": 8192,
    "cache_type_k": "q8_0",
    "cache_type_v": "q8_0",
    "flash_attn": False,
    "n_batch": 1024,
    "n_ubatch": 128,
    "n_parallel": 4,
    "kv_unified": True,
    "swa_full": True,
    "n_outputs_max": 4,
    "repack": "avx2",
    "n_gpu_layers": 12,
    "n_gpus": 2,
    "tensor_split": (3, 1),
}
GRID = [memory.Settings(), *(memory.Settings(**{name: value}) for name, value in CHANGED.items())]
GRID.append(memory.Settings(**{**CHANGED, "flash_attn": True}))
# A tag that Ollama's library lists, for each model (its tag lists were read in June 2026).
TAGS = {
    "smollm2-135m": ("Q4_K_M", "smollm2:135m-instruct-q4_K_M"),
    "gemma-3-270m": ("Q8_0", "gemma3:270m-it-q8_0"),
    "smollm2-360m": ("Q4_0", "smollm2:360m-instruct-q4_0"),
    "qwen2.5-0.5b": ("F16", "qwen2.5:0.5b-instruct-fp16"),
    "qwen3-0.6b": ("Q4_K_M", "qwen3:0.6b-q4_K_M"),
    "gemma-3-1b": ("Q8_0", "gemma3:1b-it-q8_0"),
    "tinyllama-1.1b": ("Q4_0", "tinyllama:1.1b-chat-v1-q4_0"),
    "qwen2.5-1.5b": ("F16", "qwen2.5:1.5b-instruct-fp16"),
    "smollm2-1.7b": ("Q5_K_S", "smollm2:1.7b-instruct-q5_K_S"),
    "smollm-1.7b": ("Q2_K", "smollm:1.7b-instruct-v0.2-q2_K"),
    "qwen3-1.7b": ("Q4_K_M", "qwen3:1.7b-q4_K_M"),
    "gemma-2b": ("Q8_0", "gemma:2b-instruct-v1.1-q8_0"),
    "gemma-2-2b": ("Q4_0", "gemma2:2b-instruct-q4_0"),
    "phi-2": ("F16", "phi:2.7b-chat-v2-fp16"),
    "qwen2.5-3b": ("Q5_K_S", "qwen2.5:3b-instruct-q5_K_S"),
    "phi-3-mini": ("Q2_K", "phi3:3.8b-mini-4k-instruct-q2_K"),
    "gemma-3-4b": ("Q4_K_M", "gemma3:4b-it-q4_K_M"),
    "qwen3-4b": ("Q8_0", "qwen3:4b-q8_0"),
    "llama-2-7b": ("Q4_0", "llama2:7b-chat-q4_0"),
    "orca-mini-7b": ("F16", "orca-mini:7b-v3-fp16"),
    "deepseek-coder-6.7b": ("Q5_K_S", "deepseek-coder:6.7b-instruct-q5_K_S"),
    "mistral-7b-v0.2": ("Q2_K", "mistral:7b-instruct-v0.2-q2_K"),
    "mistral-7b-v0.3": ("Q3_K_L", "mistral:7b-instruct-v0.3-q3_K_L"),
    "qwen2.5-7b": ("Q6_K", "qwen2.5:7b-instruct-q6_K"),
    "deepseek-r1-distill-qwen-7b": ("Q4_K_M", "deepseek-r1:7b-qwen-distill-q4_K_M"),
    "qwen2-7b": ("Q8_0", "qwen2:7b-instruct-q8_0"),
    "qwen2.5-vl-7b": ("F16", "qwen2.5vl:7b-fp16"),
    "qwen1.5-7b": ("Q5_K_S", "qwen:7b-chat-v1.5-q5_K_S"),
    "llama-3-8b": ("Q2_K", "llama3:8b-instruct-q2_K"),
    "llama-3.1-8b": ("Q3_K_L", "llama3.1:8b-instruct-q3_K_L"),
    "deepseek-r1-distill-llama-8b": ("Q4_K_M", "deepseek-r1:8b-llama-distill-q4_K_M"),
    "qwen3-8b": ("Q8_0", "qwen3:8b-q8_0"),
    "gemma-7b": ("Q4_0", "gemma:7b-instruct-v1.1-q4_0"),
    "gemma-2-9b": ("F16", "gemma2:9b-instruct-fp16"),
    "llama-2-13b": ("Q5_K_S", "llama2:13b-chat-q5_K_S"),
    "qwen3-14b": ("Q4_K_M", "qwen3:14b-q4_K_M"),
    "qwen2.5-14b": ("Q8_0", "qwen2.5:14b-instruct-q8_0"),
    "deepseek-coder-v2-lite": ("Q4_0", "deepseek-coder-v2:16b-lite-instruct-q4_0"),
    "gemma-2-27b": ("F16", "gemma2:27b-instruct-fp16"),
    "qwen3-30b-a3b": ("Q4_K_M", "qwen3:30b-a3b-q4_K_M"),
    "qwen2.5-32b": ("Q8_0", "qwen2.5:32b-instruct-q8_0"),
    "codellama-34b": ("Q4_0", "codellama:34b-instruct-q4_0"),
    "yi-34b": ("F16", "yi:34b-chat-fp16"),
    "falcon-40b": ("Q8_0", "falcon:40b-instruct-q8_0"),
    "mixtral-8x7b": ("Q4_0", "mixtral:8x7b-instruct-v0.1-q4_0"),
    "llama-2-70b": ("F16", "llama2:70b-chat-fp16"),
    "llama-3.1-70b": ("Q5_K_S", "llama3.1:70b-instruct-q5_K_S"),
}


def options(command):
    """{option: value} of a command line; a switch has the value True."""
    words, found = shlex.split(command), {}
    for index, word in enumerate(words):
        if word.startswith("--"):
            following = words[index + 1] if index + 1 < len(words) else "--"
            found[word] = True if following.startswith("--") else following
    return found


# --- Python --------------------------------------------------------------------------------------------------------


def test_every_setting_is_in_the_list_above():
    assert set(CHANGED) == {field.name for field in dataclasses.fields(memory.Settings)}
    assert all(getattr(commands.DEFAULTS, name) != value for name, value in CHANGED.items())


@pytest.mark.parametrize("settings", GRID, ids=range(len(GRID)))
def test_the_python_cell_computes_the_same(settings, monkeypatch, capsys):
    asked = []
    here = Machine.pretend("test", 7 * units.GIB)
    monkeypatch.setattr(hardware, "detect", lambda: here)
    monkeypatch.setattr(engine, "reserve", lambda *given, **how: asked.append((given, how)) or "the engine's answer")
    names = {}
    exec(commands.python_cell(LLAMA, "Q5_K_M", settings), names)
    wanted = memory.estimate(LLAMA, "Q5_K_M", **dataclasses.asdict(settings))
    assert names["needs"] == wanted
    [(given, how)] = asked
    assert given == (LLAMA, "Q5_K_M")
    assert memory.Settings(**how) == settings
    printed = capsys.readouterr().out
    assert str(fit.verdict(wanted, here)) in printed
    assert "the engine's answer" in printed


@pytest.mark.parametrize("name", CHANGED)
def test_the_python_cell_names_what_was_changed_and_nothing_else(name):
    cell = commands.python_cell(LLAMA, "Q4_K_M", memory.Settings(**{name: CHANGED[name]}))
    assert {word for word in CHANGED if f"{word}=" in cell} == {name}
    assert "'" not in cell


@pytest.mark.parametrize("name", models.names())
def test_the_python_cell_finds_its_model(name):
    cell = commands.python_cell(models.get(name), "Q4_K_M", memory.Settings())
    assert f'models.get("{name}")' in cell
    assert len(cell.splitlines()) <= 12
    compile(cell, "cell", "exec")


# --- llama-server --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, option, value",
    [
        ("n_ctx", "--ctx-size", "8192"),
        ("cache_type_k", "--cache-type-k", "q8_0"),
        ("cache_type_v", "--cache-type-v", "q8_0"),
        ("flash_attn", "--flash-attn", "off"),
        ("n_batch", "--batch-size", "1024"),
        ("n_ubatch", "--ubatch-size", "128"),
        ("n_parallel", "--parallel", "4"),
        ("kv_unified", "--kv-unified", True),
        ("swa_full", "--swa-full", True),
        ("repack", "--no-repack", None),
        ("n_gpu_layers", "--n-gpu-layers", "12"),
        ("tensor_split", "--tensor-split", "3,1"),
    ],
)
def test_llama_server_gets_every_changed_setting(name, option, value):
    changed = options(commands.llama_server(LLAMA, "Q4_K_M", memory.Settings(**{name: CHANGED[name]})))
    plain = options(commands.llama_server(LLAMA, "Q4_K_M", memory.Settings()))
    assert changed.get(option) == value != plain.get(option)
    assert {key: changed.get(key) for key in plain if key != option} == {k: v for k, v in plain.items() if k != option}


def test_llama_server_is_told_what_it_would_do_otherwise():
    plain = options(commands.llama_server(LLAMA, "Q4_K_M", memory.Settings()))
    assert plain == {
        "--model": "llama-3.1-8b-Q4_K_M.gguf",
        "--ctx-size": "4096",
        "--parallel": "1",
        "--flash-attn": "on",
        "--no-repack": True,
    }


def test_all_layers_on_the_gpu_is_a_large_number():
    everything = memory.Settings(n_gpu_layers=-1)
    assert options(commands.llama_server(LLAMA, "Q4_K_M", everything))["--n-gpu-layers"] == "999"
    assert "PARAMETER num_gpu 999" in commands.modelfile(LLAMA, "Q4_K_M", everything)


def test_a_strange_name_stays_one_word():
    odd = dataclasses.replace(LLAMA, name="my model; rm -rf")
    command = commands.llama_server(odd, "Q4_K_M", memory.Settings())
    assert options(command)["--model"] == "my model; rm -rf-Q4_K_M.gguf"


# --- Ollama --------------------------------------------------------------------------------------------------------


def test_every_model_that_ollama_serves_is_in_the_list_above():
    assert set(TAGS) == {name for name in models.names() if models.get(name).ollama_tag}


@pytest.mark.parametrize("name", TAGS)
def test_ollama_tags_are_exact(name):
    quantization, tag = TAGS[name]
    assert commands.ollama_tag(models.get(name), quantization) == tag


@pytest.mark.parametrize("name", models.names())
def test_what_ollama_serves_has_a_well_formed_tag_and_the_rest_none(name):
    spec = models.get(name)
    served = (spec.ollama_serves or commands.OLLAMA_SERVES) if spec.ollama_tag else ()
    assert set(served) <= set(commands.OLLAMA_SERVES)
    for quantization in (*panels.QUANTIZATIONS, *commands.OLLAMA_SERVES):
        tag = commands.ollama_tag(spec, quantization)
        assert (tag is not None) is (quantization in served)
        if tag:
            assert re.fullmatch(r"[a-z0-9.-]+:[a-z0-9.-]+-(fp16|q[2-8]_(0|1|K(_[SML])?))", tag)
    assert commands.ollama_tag(spec, "IQ4_XS") is None


def test_a_model_that_ollama_does_not_serve_comes_from_a_file():
    nowhere = dataclasses.replace(LLAMA, ollama_tag="")
    assert commands.ollama_tag(nowhere, "Q4_K_M") is None
    text = commands.modelfile(nowhere, "Q4_K_M", memory.Settings())
    assert text.splitlines()[0] == "FROM ./llama-3.1-8b-Q4_K_M.gguf"
    assert commands.modelfile(LLAMA, "IQ4_XS", memory.Settings()).startswith("FROM ./llama-3.1-8b-IQ4_XS.gguf")


@pytest.mark.parametrize(
    "changed, line",
    [
        ({"n_ctx": 8192}, "PARAMETER num_ctx 8192"),
        ({"n_ctx": 0}, "PARAMETER num_ctx 131072"),
        ({"n_gpu_layers": 12}, "PARAMETER num_gpu 12"),
        ({"n_ubatch": 128}, "PARAMETER num_batch 128"),
        ({"flash_attn": False}, "# start the server with: OLLAMA_FLASH_ATTENTION=0 ollama serve"),
        ({"n_parallel": 2}, "# start the server with: OLLAMA_NUM_PARALLEL=2 ollama serve"),
        (
            {"cache_type_k": "q8_0", "cache_type_v": "q8_0"},
            "# start the server with: OLLAMA_KV_CACHE_TYPE=q8_0 OLLAMA_FLASH_ATTENTION=1 ollama serve",
        ),
    ],
)
def test_the_modelfile_gets_every_changed_setting(changed, line):
    lines = commands.modelfile(LLAMA, "Q4_K_M", memory.Settings(**changed)).splitlines()
    assert lines[0] == "FROM llama3.1:8b-instruct-q4_K_M"
    assert line in lines
    assert all(word.split()[0] in ("FROM", "PARAMETER", "#") for word in lines)


def test_ollama_counts_the_context_per_slot():
    settings = memory.Settings(n_ctx=8192, n_parallel=4)
    assert "PARAMETER num_ctx 2048" in commands.modelfile(LLAMA, "Q4_K_M", settings)
    assert "--ctx-size 8192 --parallel 4" in commands.llama_server(LLAMA, "Q4_K_M", settings)


def test_a_file_of_ones_own_goes_into_every_command():
    path = "/models/my file.gguf"
    settings = memory.Settings(n_ctx=4096)
    assert "--model '/models/my file.gguf' --ctx-size 4096" in commands.llama_server(LLAMA, "Q4_K_M", settings, path)
    assert commands.modelfile(LLAMA, "Q4_K_M", settings, path).startswith("FROM /models/my file.gguf\n")
    assert commands.ollama_run(LLAMA, "Q4_K_M", path).startswith("ollama create my-llama-3.1-8b -f Modelfile")
    assert "lms import '/models/my file.gguf' --symbolic-link" in commands.lm_studio(LLAMA, "Q4_K_M", settings, path)


@pytest.mark.parametrize(("layers", "gpu"), [(0, "off"), (-1, "max"), (33, "max"), (11, "0.33")])
def test_lm_studio_gets_layers_as_a_share(layers, gpu):
    settings = memory.Settings(n_gpu_layers=layers)
    assert f"--gpu {gpu}" in commands.lm_studio(LLAMA, "Q4_K_M", settings)
