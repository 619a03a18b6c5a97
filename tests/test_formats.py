"""`helpers.formats`: block types and file types, against the `gguf` package's tables and by hand."""

import pytest

from helpers import formats

BY_HAND = {  # name: (weights in a block, bytes: scales + weights)
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "Q4_0": (32, 2 + 32 // 2),
    "Q4_1": (32, 2 + 2 + 32 // 2),
    "Q5_0": (32, 2 + 32 // 8 + 32 // 2),
    "Q8_0": (32, 2 + 32),
    "Q4_K": (256, 2 + 2 + 12 + 256 // 2),
    "Q5_K": (256, 2 + 2 + 12 + 256 // 8 + 256 // 2),
    "Q6_K": (256, 256 // 2 + 256 // 4 + 16 + 2),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_blocks_by_hand(name):
    block = formats.block_type(name)
    assert (block.block_length, block.block_bytes) == BY_HAND[name]


def test_every_type_of_the_gguf_package_is_here():
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    assert set(formats.TYPES) == {kind.name for kind in GGML_QUANT_SIZES}
    for number, name in formats.TYPE_BY_ID.items():
        assert GGMLQuantizationType(number).name == name
        assert formats.block_type(name).type_id == number


def test_bits_and_bytes_of_a_type_agree():
    for block in formats.TYPES.values():
        assert block.bits_per_weight == 8 * block.bytes_per_weight


def test_a_row_is_a_whole_number_of_blocks():
    assert formats.row_bytes("Q8_0", 64) == 68
    assert formats.row_bytes("Q8_0", 0) == 0
    with pytest.raises(ValueError, match="100 weights is no whole number of Q8_0 blocks of 32"):
        formats.row_bytes("Q8_0", 100)


def test_a_tensor_is_its_rows():
    assert formats.tensor_bytes("Q4_K", (512, 3, 5)) == 3 * 5 * formats.row_bytes("Q4_K", 512)
    assert formats.tensor_bytes("F32", (7,)) == 28


def test_unknown_names_say_what_there_is():
    with pytest.raises(ValueError, match=r"'Q9_9'.*Known types: F32"):
        formats.block_type("Q9_9")
    with pytest.raises(ValueError, match=r"'Q4KM'.*Did you mean Q4_K_M"):
        formats.quantization("Q4KM")
    with pytest.raises(ValueError, match="Known: F32, F16"):
        formats.quantization(None)
    with pytest.raises(AttributeError, match="no attribute 'NONSENSE'"):
        formats.NONSENSE  # noqa: B018


def test_file_types_are_llama_cpps():
    from gguf.constants import LlamaFileType

    for name, quantization in formats.QUANTIZATIONS.items():
        theirs = {"F32": "ALL_F32", "MXFP4": "MOSTLY_MXFP4_MOE"}.get(name, f"MOSTLY_{name}")
        assert LlamaFileType[theirs].value == quantization.file_type, name


def test_quantizations_are_found_in_any_case():
    assert formats.quantization("iq4_xs") is formats.quantization("IQ4_XS")


def test_cache_types_are_block_types():
    for name in formats.CACHE_TYPES:
        assert formats.block_type(name).block_length in (1, 32)
