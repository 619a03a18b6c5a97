"""Bytes, bits, GiB and GB: the only room with 1024, 1000 or 8 as a conversion. And texts of others, fit to be shown."""

import re

BITS_PER_BYTE = 8
KIB, MIB, GIB, TIB = 1024, 1024**2, 1024**3, 1024**4
KB, MB, GB, TB = 1000, 1000**2, 1000**3, 1000**4
MOST_SHOWN = 100_000  # characters; longer texts make pages that no browser scrolls
# Controls (of terminals, and the C1 ones that some obey as well), turned writing, half characters; not tab and newline.
HARMFUL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def show(n_bytes, digits=1):
    """Bytes as people read them, in binary units (1 GiB = 1024^3 bytes).

    *When it misleads*: rounding hides small differences; compare the bytes, show the string.

    >>> show(5_586_000_000)
    '5.2 GiB'
    >>> show(-1536)
    '-1.5 KiB'
    >>> show(0)
    '0 B'
    """
    sign, n = ("-", -n_bytes) if n_bytes < 0 else ("", n_bytes)
    for unit, name in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if n >= unit:
            return f"{sign}{n / unit:.{digits}f} {name}"
    return f"{sign}{int(n)} B"


def show_decimal(n_bytes, digits=2):
    """Bytes in decimal units (1 GB = 10^9 bytes), the way shops and download pages count.

    >>> show_decimal(4_920_739_232)
    '4.92 GB'
    """
    for unit, name in ((TB, "TB"), (GB, "GB"), (MB, "MB"), (KB, "KB")):
        if abs(n_bytes) >= unit:
            return f"{n_bytes / unit:.{digits}f} {name}"
    return f"{int(n_bytes)} B"


def bits_per_weight(n_bytes, n_params):
    """Average storage of one weight, in bits.

    >>> bits_per_weight(18, 32)
    4.5
    """
    return n_bytes * BITS_PER_BYTE / n_params


def bytes_from_bits(n_weights, bits):
    """Bytes of `n_weights` stored at `bits` bits each, rounded up to whole bytes.

    >>> bytes_from_bits(7_000_000_000, 16)
    14000000000
    """
    return int(-(-n_weights * bits // BITS_PER_BYTE))


def pad(n, multiple):
    """`n` rounded up to the next multiple; buffers are allocated in such steps.

    >>> pad(2049, 256)
    2304
    """
    return -(-n // multiple) * multiple


def from_gib(n_gib):
    """Bytes of a number of GiB, as sliders give it.

    >>> from_gib(0.5)
    536870912
    """
    return int(n_gib * GIB)


def show_count(n):
    """A large number of things as people say it.

    >>> show_count(8_030_261_312), show_count(134_515_008), show_count(5_000)
    ('8.03 billion', '134.5 million', '5,000')
    """
    if n >= GB:
        return f"{n / GB:.4g} billion"
    return f"{n / MB:.4g} million" if n >= MB else f"{n:,}"


def printable(text, most=MOST_SHOWN):
    """A text of others (a file, a server, a model), fit to be shown: it moves no cursor and turns no writing round.

    Such characters become a visible mark, one for one; lines and tabs stay; what is beyond `most` characters is counted
    instead of shown. For HTML it is escaped besides.

    >>> printable("tidy\\x1b[2J name"), printable("abcdef", most=4)
    ('tidy\ufffd[2J name', 'abcd … (2 more characters)')
    """
    text = str(text)
    rest = f" … ({len(text) - most:,} more characters)" if len(text) > most else ""
    return HARMFUL.sub("\N{REPLACEMENT CHARACTER}", text[:most]) + rest


def plain(text, most=200):
    """A name or a sentence of others on one line of at most `most` characters, without anything that does not print.

    >>> plain("two\\nlines"), plain("abcdef", most=4)
    ('two\ufffdlines', 'abc…')
    """
    text = str(text)
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:most])
    return shown[: most - 1] + "…" if len(text) > most else shown
