"""E-mail addresses, telephone, card and account numbers in captions: what nobody meant to publish in a dataset."""

import re
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from curate.step import bool_, int32, step

KINDS = ("emails", "phones", "cards", "ibans")
EMAIL = r"[A-Za-z0-9_%+-][A-Za-z0-9._%+-]*@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}"
LIKELY = r"\d(?:[ ().\x{a0}/-]{0,3}\d){6}|[A-Za-z]{2}\d\d ?[0-9A-Za-z]{4} ?[0-9A-Za-z]{3}"
"""Seven digits with little between them, or the beginning of an IBAN: no more than that is looked at twice."""
IBAN = re.compile(r"(?<![A-Z0-9])([A-Z]{2})\d\d(?: ?[A-Z0-9]){11,30}")
IBAN_LENGTHS = dict(re.findall(r"([A-Z]{2})(\d\d)", """
    AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 ES24 FI18 FK18
    FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25
    MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19
    SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30"""))
CARD = re.compile(r"(?<!\d)(?:(?:4\d{3}|5[1-5]\d\d|2[2-7]\d\d|6011|64[4-9]\d|65\d\d|62\d\d|35\d\d)([ -]?)\d{4}\1\d{4}\1\d{4}"
                  r"|3[47]\d\d([ -]?)\d{6}\2\d{5}|3(?:0[0-5]\d|[68]\d\d)([ -]?)\d{6}\3\d{4})(?!\d)")
PHONE = re.compile(r"(?<![\w+.-])(?:"
                   r"(?:\+\d{1,3}|00[ .-]?[1-9]\d{0,2}[ ./-])(?:[ ./-]?\(\d{1,4}\))?(?:[ ./-]?\d{1,4}){2,6}"
                   r"|(?:1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[ .-])[2-9]\d\d[.-]\d{4}"
                   r"|(?P<trunk>\(?0[1-9]\d{1,4}\)?[ /-]{1,3}(?!\d{4}-\d\d-\d\d)\d{2,4}(?:[ -]?\d{2,4}){1,4})"
                   r")(?![\w-])")


@step(adds={**{f"num_{kind}": int32 for kind in KINDS}, "has_private_data": bool_}, batch=10_000)
def private_data(caption: pa.Array) -> dict[str, NDArray[np.int32] | NDArray[np.bool_]]:
    """How many e-mail addresses, telephone, card and bank account numbers the caption holds, 0 or more, and whether any.

    num_emails  user@host.tld in ASCII
    num_phones  8 to 15 digits (ITU-T E.164) after +CC or 00CC, as in North America, or 10 to 15 divided ones that begin with 0
    num_cards   a known issuer's first digits and length, in one piece or in groups, and the check digit (Luhn, ISO/IEC 7812)
    num_ibans   the length that its country has in the IBAN register, and the check (mod 97, ISO 13616); capitals only

    The audit of DataComp's CommonPool (arXiv 2506.17185) found that its captions were never searched for such; the patterns are
    our choice. They find what is written plainly: run caption_clean first for what hides behind entities or invisible
    characters. A number is counted once, as IBAN before card before phone. A part number may look like a telephone number.
    """
    found = {f"num_{kind}": np.zeros(len(caption), np.int32) for kind in KINDS}
    mailing = np.flatnonzero(pc.match_substring(caption, "@").to_numpy(zero_copy_only=False))
    if len(mailing):
        found["num_emails"][mailing] = pc.count_substring_regex(caption.take(pa.array(mailing)), EMAIL).to_numpy()
    likely = np.flatnonzero(pc.match_substring_regex(caption, LIKELY).to_numpy(zero_copy_only=False))
    for row, text in zip(likely.tolist(), caption.take(pa.array(likely)).to_pylist(), strict=True):
        found["num_ibans"][row], text = _taken(text, IBAN, _after_iban)
        found["num_cards"][row], text = _taken(text, CARD, _after_card)
        found["num_phones"][row] = sum(map(_is_phone, PHONE.finditer(text)))
    return {**found, "has_private_data": np.logical_or.reduce([numbers > 0 for numbers in found.values()])}


def _taken(text: str, pattern: re.Pattern[str], after: Callable[[re.Match[str]], str | None]) -> tuple[int, str]:
    """How many matches are real ones, and the text without them. `after` gives what stands behind a real one, else None."""
    found = 0

    def out(match: re.Match[str]) -> str:
        nonlocal found
        rest = after(match)
        found += rest is not None
        return match[0] if rest is None else f"\n{rest}"

    text = pattern.sub(out, text)
    return found, text


def _after_iban(match: re.Match[str]) -> str | None:
    joined, length = match[0].replace(" ", ""), int(IBAN_LENGTHS.get(match[1], 99))
    digits = "".join(str(int(c, 36)) for c in joined[4:length] + joined[:4])
    return joined[length:] if len(joined) >= length and int(digits) % 97 == 1 else None


def _after_card(match: re.Match[str]) -> str | None:
    digits = [int(c) for c in reversed(match[0]) if c.isdigit()]
    return None if (sum(digits[::2]) + sum(sum(divmod(2 * d, 10)) for d in digits[1::2])) % 10 else ""


def _is_phone(match: re.Match[str]) -> bool:
    return (10 if match["trunk"] else 8) <= sum(map(str.isdigit, match[0])) <= 15
