"""Every GGUF tensor type and file type: block length, bytes per block, bits per weight.

The block-size table is the `gguf` package's own; it is read at the first use so that importing this room stays light.
"""

import functools
from dataclasses import dataclass

from . import units


@dataclass(frozen=True)
class BlockType:
    """One ggml tensor type: `block_length` weights are stored together in `block_bytes` bytes."""

    name: str
    type_id: int
    block_length: int
    block_bytes: int

    @property
    def bits_per_weight(self):
        """Storage of one weight in bits, scales included.

        >>> block_type("Q4_0").bits_per_weight       # 18 bytes for 32 weights: 2 of scale, 16 of weights
        4.5
        """
        return units.bits_per_weight(self.block_bytes, self.block_length)

    @property
    def bytes_per_weight(self):
        """Storage of one weight in bytes, scales included.

        >>> block_type("Q8_0").bytes_per_weight
        1.0625
        """
        return self.block_bytes / self.block_length


@functools.cache
def _tables():
    from gguf.constants import GGML_QUANT_SIZES

    types = {kind.name: BlockType(kind.name, int(kind), *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}
    return types, {block.type_id: block.name for block in types.values()}


def __getattr__(name):
    if name == "TYPES":
        return _tables()[0]
    if name == "TYPE_BY_ID":
        return _tables()[1]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def block_type(name):
    """The `BlockType` of a ggml type name, upper or lower case.

    Raises `ValueError` with the known names for an unknown one.

    >>> block_type("q8_0").block_bytes
    34
    """
    types, _ = _tables()
    found = types.get(str(name).upper())
    if found is None:
        raise ValueError(f"Unknown tensor type {name!r}. Known types: {', '.join(types)}.")
    return found


def row_bytes(type_name, n_elements):
    """Bytes of one row of `n_elements` weights.

    Formula: n_elements / block_length x block_bytes. Raises `ValueError` when the row is no whole number of blocks,
    which is why llama.cpp falls back to another type for odd widths.

    >>> row_bytes("Q4_K", 4096)             # 16 blocks of 144 bytes
    2304
    """
    block = block_type(type_name)
    if n_elements % block.block_length:
        raise ValueError(
            f"A row of {n_elements} weights is no whole number of {block.name} blocks of {block.block_length} weights."
        )
    return n_elements // block.block_length * block.block_bytes


def tensor_bytes(type_name, shape):
    """Bytes of a whole tensor; `shape` in ggml's order, row length first.

    >>> tensor_bytes("F16", (4096, 1024))
    8388608
    """
    n_bytes = row_bytes(type_name, shape[0])
    for extent in shape[1:]:
        n_bytes *= extent
    return n_bytes


@dataclass(frozen=True)
class Quantization:
    """A file type: what people call "a quantization". It mixes tensor types; `base` is the one most tensors get."""

    name: str
    file_type: int
    base: str
    says: str


def _quantizations():
    # The bits are the average over all weights of Llama 3.1 8B; mixes and scales differ a little between models.
    table = """
    F32      0  F32      32 bits a weight: as trained, for comparison only
    F16      1  F16      16 bits: what most models are published in
    BF16    32  BF16     16 bits with the range of 32: as most models are trained
    Q8_0     7  Q8_0     8.5 bits: so close to the original that tests cannot tell
    Q6_K    18  Q6_K     6.6 bits: very close to the original
    Q5_K_M  17  Q5_K     5.7 bits: a little smaller, hardly worse
    Q5_K_S  16  Q5_K     5.6 bits: like Q5_K_M without the extra bits for the sensitive tensors
    Q5_1     9  Q5_1     6 bits: older format, scale and offset
    Q5_0     8  Q5_0     5.6 bits: older format, scale only
    Q4_K_M  15  Q4_K     4.9 bits: the usual choice
    Q4_K_S  14  Q4_K     4.7 bits: like Q4_K_M with fewer extra bits
    Q4_1     3  Q4_1     5.1 bits: older format, scale and offset
    Q4_0     2  Q4_0     4.6 bits: older format, scale only; fast on many CPUs
    IQ4_NL  25  IQ4_NL   4.7 bits: 16 levels that are not evenly spaced
    IQ4_XS  30  IQ4_XS   4.5 bits: smaller than Q4_K_S at about its quality
    Q3_K_L  13  Q3_K     4.3 bits: 3-bit with many extra bits
    Q3_K_M  12  Q3_K     4.0 bits: visibly worse than 4-bit
    Q3_K_S  11  Q3_K     3.6 bits: for when nothing larger fits
    IQ3_M   27  IQ3_S    3.8 bits: a codebook instead of a grid
    IQ3_S   26  IQ3_S    3.7 bits: a codebook instead of a grid
    IQ3_XS  22  IQ3_S    3.5 bits: between IQ3_S and IQ3_XXS
    IQ3_XXS 23  IQ3_XXS  3.4 bits: needs an importance matrix
    Q2_K    10  Q2_K     3.2 bits in practice: clearly worse
    Q2_K_S  21  Q2_K     3.0 bits: needs an importance matrix
    IQ2_M   29  IQ2_S    2.9 bits: needs an importance matrix
    IQ2_S   28  IQ2_XS   2.7 bits: needs an importance matrix
    IQ2_XS  20  IQ2_XS   2.6 bits: needs an importance matrix
    IQ2_XXS 19  IQ2_XXS  2.4 bits: needs an importance matrix
    IQ1_M   31  IQ1_M    2.1 bits: barely coherent
    IQ1_S   24  IQ1_S    2.0 bits: barely coherent
    MXFP4   38  MXFP4    4.25 bits for experts, 8.5 for the rest: how gpt-oss is published
    TQ2_0   37  TQ2_0    2.5 bits: for models trained with weights -1, 0, 1
    TQ1_0   36  TQ1_0    2.2 bits: for models trained with weights -1, 0, 1
    """
    rows = (line.split(None, 3) for line in table.strip().splitlines())
    return {name: Quantization(name, int(file_type), base, says) for name, file_type, base, says in rows}


QUANTIZATIONS = _quantizations()  # file-type numbers: llama.h, enum llama_ftype

CACHE_TYPES = ("f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl", "bf16", "f32")


def quantization(name):
    """The `Quantization` called `name` (any case). Raises `ValueError` naming the near matches.

    >>> quantization("q4_k_m").base
    'Q4_K'
    """
    found = QUANTIZATIONS.get(str(name).upper())
    if found is None:
        import difflib

        near = difflib.get_close_matches(str(name).upper(), QUANTIZATIONS, n=3, cutoff=0.4)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"Unknown quantization {name!r}.{hint} Known: {', '.join(QUANTIZATIONS)}.")
    return found
