"""`helpers.units`: what people read, and the few conversions."""

import pytest

from helpers import units


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (-1024, "-1.0 KiB"),
        (1024**2, "1.0 MiB"),
        (1024**3 - 1, "1024.0 MiB"),
        (1024**3, "1.0 GiB"),
        (10**9, "953.7 MiB"),
        (16 * 1024**4, "16.0 TiB"),
    ],
)
def test_binary_units(n_bytes, text):
    assert units.show(n_bytes) == text


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (10**9, "1.00 GB"), (1024**3, "1.07 GB"), (-(10**6), "-1.00 MB"), (10**12, "1.00 TB")],
)
def test_decimal_units(n_bytes, text):
    assert units.show_decimal(n_bytes) == text


def test_a_gib_is_more_than_a_gb():
    assert pytest.approx(1.0737, abs=1e-4) == units.GIB / units.GB
    assert pytest.approx(1.0995, abs=1e-4) == units.TIB / units.TB


def test_digits():
    assert units.show(1536, digits=3) == "1.500 KiB"
    assert units.show_decimal(1536, digits=0) == "2 KB"


@pytest.mark.parametrize(
    ("n_weights", "bits", "n_bytes"),
    [(7_000_000_000, 4, 3_500_000_000), (3, 4, 2), (1, 1, 1), (32, 4.5, 18), (0, 16, 0)],
)
def test_bits_become_whole_bytes(n_weights, bits, n_bytes):
    found = units.bytes_from_bits(n_weights, bits)
    assert found == n_bytes and isinstance(found, int)


def test_bits_per_weight_and_back():
    for bits in (1.5625, 4.5, 8.5, 16):
        assert units.bits_per_weight(units.bytes_from_bits(256, bits), 256) == bits


def test_padding_reaches_the_next_multiple():
    for n in (0, 1, 255, 256, 257):
        padded = units.pad(n, 256)
        assert padded % 256 == 0 and 0 <= padded - n < 256
