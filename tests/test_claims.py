"""The article's claims: each is checked by code, and the verdicts are those that the sources give."""

import pytest

from helpers import claims, memory, models, units

# What reading the sources gave, by hand; the checks must come to the same.
BY_HAND = {
    "fp16-7b": "true",
    "factor-1.2": "rule",
    "llama-q2-file": "true",
    "llama-q2-need": "false",
    "llama-q3-file": "true",
    "mistral-q4-file": "true",
    "mistral-q4-need": "rule",
    "mistral-licence": "true",
    "gemma2-4b": "false",
    "gemma2-4b-file": "false",
    "gemma2-ocr": "false",
    "gemma2-7b": "false",
    "gemma2-7b-q5-file": "false",
    "gemma2-7b-q6-file": "false",
    "phi3-q8-file": "true",
    "r1-7b-file": "false",
    "r1-7b-tag": "true",
    "qwen1.5-file": "true",
    "coder-v2-6.7b": "false",
    "coder-6.7b-file": "true",
    "bitnet-need": "false",
    "bitnet-ollama": "false",
    "orca-q4-file": "true",
    "orca-q4-need": "rule",
    "orca-tag": "true",
    "share-q4": "approximate",
    "share-q5": "approximate",
    "share-q8": "approximate",
    "gpt-oss-20b": "false",
    "llama3-instruct-tag": "false",
    "mistral-instruct-tag": "true",
    "qwen2-instruct-tag": "true",
    "gemma-it-tag": "false",
    "tinyllama-tag": "true",
    "phi3-tag": "true",
    "qwen3-fp8": "false",
    "mistral-meta": "false",
    "mistral-3.5": "false",
    "all-chinese": "false",
}
ALL = {finding.claim.name: finding for finding in claims.check_all()}


@pytest.mark.parametrize("name", BY_HAND)
def test_the_verdict_is_the_one_found_by_hand(name):
    assert ALL[name].verdict == BY_HAND[name], str(ALL[name])


@pytest.mark.parametrize("claim", claims.listed(), ids=lambda claim: claim.name)
def test_a_claim_is_whole(claim):
    finding = claims.check(claim)
    assert claim.says and claim.where and claim.check in claims.CHECKS
    assert finding.verdict in claims.VERDICTS and finding.fact.endswith((".", ")"))
    assert finding.source, "neither calculated nor backed by a source"
    assert claim.name in ALL and claims.get(claim.name) == claim


def test_what_is_no_number_has_a_source_of_its_own():
    facts = {"fact", "tag", "means", "serves", "images", "licence", "chinese", "window"}
    assert [claim.name for claim in claims.listed() if claim.check in facts and not claim.source] == []


def test_every_check_is_used():
    assert {claim.check for claim in claims.listed()} == set(claims.CHECKS)


def test_numbers_come_from_the_formulas(monkeypatch):
    monkeypatch.setattr(memory, "file_bytes", lambda spec, quantization: 10 * units.GB)
    finding = claims.check("llama-q2-file")
    assert finding.verdict == "false" and "10.00 GB" in finding.fact and finding.ratio == pytest.approx(0.318)


@pytest.mark.parametrize(
    ("ratio", "about", "verdict"),
    [
        (1.009, False, "true"),
        (1.02, False, "approximate"),
        (0.94, False, "false"),
        (1.04, True, "true"),
        (0.82, True, "approximate"),
        (1.3, True, "false"),
    ],
)
def test_how_near_is_near_enough(ratio, about, verdict):
    assert claims._judge(ratio, about) == verdict


def test_the_constant_is_seen_only_where_it_is_one():
    assert claims._constant("orca-mini-7b", "Q4_K_M", 6.58, 4.08)[0] == "rule"
    assert claims._constant("orca-mini-7b", "Q4_K_M", 9.08, 4.08)[0] == "false"


def test_a_tag_that_means_what_it_says():
    assert claims._means("gemma3:4b", "gemma-3-4b") == ("true", "gemma3:4b is Gemma 3 4B.")


def test_an_unknown_name_lists_the_names():
    with pytest.raises(KeyError, match="llama-q2-file"):
        claims.get("nothing")


def test_findings_show_the_same_as_text_and_as_a_table():
    found = claims.check_all()
    table = found._repr_html_()
    assert table.count("<tr>") == len(found) + 1
    assert all(finding.claim.says in str(found) for finding in found)
    assert sum(map(len, (found.only(verdict) for verdict in claims.VERDICTS))) == len(found)


def test_text_is_escaped():
    claim = claims.Claim("x", "<b>bold</b>", "1", "fact", {"verdict": "true", "fact": "<i>."}, "<u>")
    assert "<b>" not in claims.check(claim)._repr_html_()
    assert "&lt;u&gt;" in claims.check(claim)._repr_html_()


def test_the_table_by_parameters():
    rows = claims.sizes()
    assert [row.says for row in rows][:5] == ["1B", "2B", "3B", "4B", "7B"]
    for row in rows:
        assert models.get(row.spec.name) is row.spec and row.need_gb > row.weights_gb
        assert row.theory_gb == pytest.approx(float(row.says[:-1]) / 2)  # the article's column is 4 bits a weight
        assert row.theory_ratio < 1, "4 bits is never the whole truth"
    assert {row.quantization for row in rows if "gpt-oss" in row.spec.name} == {"MXFP4"}


def test_a_longer_context_needs_more():
    short, long = claims.sizes(n_ctx=1024), claims.sizes(n_ctx=2048)
    assert all(a.need_gb < b.need_gb for a, b in zip(short, long, strict=True))


def test_the_table_by_memory_grows():
    rows = claims.hardware_rows()
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    assert all(says == f"up to {billions}B" for _, says, billions in rows)
