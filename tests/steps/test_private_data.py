import time

import pyarrow as pa
import pytest

from curate.steps.private_data import IBAN_LENGTHS, KINDS, private_data


def found(*captions: str) -> list[tuple[int, ...]]:
    """(e-mails, phones, cards, ibans) of each."""
    values = private_data(pa.array(captions, pa.string()))
    rows = list(zip(*(values[f"num_{kind}"].tolist() for kind in KINDS), strict=True))
    assert values["has_private_data"].tolist() == [any(row) for row in rows]
    return rows


@pytest.mark.parametrize(("caption", "emails"), [
    ("mail jo.doe+x@mail.example.co.uk, or b@c.de.", 2), ("<jo@example.org>", 1), ("a@b", 0), ("@user", 0), ("5 @ 3.com", 0),
    ("a@b.c", 0), ("me(at)example.org", 0), ("사진 kim@naver.com", 1), ("", 0),
])
def test_emails(caption: str, emails: int) -> None:
    assert found(caption) == [(emails, 0, 0, 0)]


@pytest.mark.parametrize("caption", [
    "+49 30 901820", "+1 (212) 555-0187", "call (212) 555-0187 now", "212-555-0187", "212.555.0187", "1-800-555-0187",
    "0044 20 7946 0958", "020 7946 0958", "+442079460958", "030/90182000", "tel:+33-1-42-68-53-00", "+30 697 435 0179",
])
def test_phones(caption: str) -> None:
    assert found(caption) == [(0, 1, 0, 0)]


@pytest.mark.parametrize("caption", [
    "1920x1080", "2019-08-24", "08-24-2019", "GBP_5020 20190824 0714 2019-08-24", "12345678", "ISBN 978-3-16-148410-0",
    "EAN 4006381333931",
    "9780072969047 0072969040", "192.168.100.200", "+1 for that", "+4930", "+1234567890123456", "RI 02889-1145", "£1,234,567.89",
    "5 x 10 x 20 x 30 x 40", "0800", "",
])
def test_no_phones(caption: str) -> None:
    assert found(caption) == [(0, 0, 0, 0)]


@pytest.mark.parametrize(("caption", "cards"), [
    ("4111 1111 1111 1111", 1), ("4111-1111-1111-1111", 1), ("card 4111111111111111.", 1), ("4111 1111-1111 1111", 0),
    ("4111111111111112", 0), ("14111111111111111", 0), ("5555555555554444", 1), ("2221000000000009", 1), ("378282246310005", 1),
    ("3782 822463 10005", 1), ("30569309025904", 1), ("6011111111111117", 1), ("3530111333300000", 1), ("1234567812345670", 0),
    ("4111111111111111 and 5555555555554444", 2),
])
def test_cards(caption: str, cards: int) -> None:
    """The numbers that card companies publish for tests; Luhn and the issuer's digits must both fit."""
    assert found(caption) == [(0, 0, cards, 0)]


@pytest.mark.parametrize(("caption", "ibans"), [
    ("DE89 3704 0044 0532 0130 00", 1), ("DE89370400440532013000", 1), ("GB82WEST12345698765432", 1),
    ("GB82WEST12345698765431", 0), ("NL91ABNA0417164300", 1), ("FR14 2004 1010 0505 0001 3M02 606", 1),
    ("XX89370400440532013000", 0),
    ("DE8937040044053201300", 0), ("ADE89370400440532013000", 0), ("de89370400440532013000", 0),
])
def test_ibans(caption: str, ibans: int) -> None:
    """The examples of the IBAN register; the country's length and mod 97 must both fit."""
    assert found(caption) == [(0, 0, 0, ibans)]


def test_a_number_is_counted_once() -> None:
    assert found("IBAN DE89370400440532013000 CALL +49 30 901820 jo@doe.org 4111111111111111", "", "+49 30 901820") == [
        (1, 1, 1, 1), (0, 0, 0, 0), (0, 1, 0, 0)]


def test_lengths_of_ibans() -> None:
    assert len(IBAN_LENGTHS) == 88
    assert all(15 <= int(length) <= 33 for length in IBAN_LENGTHS.values())


def test_empty_batch() -> None:
    assert found() == []


@pytest.mark.parametrize("unit", ["1", "4111 ", "+1 ", "a@b.c1.", "@", "DE89 ", "DE89370400440532013000", "(0", "00 1", "0123/",
                                  "+123456789012345 ", "A1", " 1", "a.", "-"])
def test_linear_time(unit: str) -> None:
    text = unit * (200_000 // len(unit))
    begin = time.perf_counter()
    found(text)
    assert time.perf_counter() - begin < 5
