"""The caption without what pins it to one day or one make: dates, durations, and names and numbers before a noun."""

import re
from collections.abc import Iterator, Sequence

from curate.captions import tagger as taggers
from curate.captions.tagger import DETERMINER, NOUN, PREPOSITION, PROPER, STAND_IN, WORD, Name, Tagger, Word
from curate.step import int32, step, string

YEAR = r"(?:1[5-9]|20)\d\d"
MONTH = (r"(?:January|February|March|April|May|June|July|August|September|October|November|December"
         r"|(?:Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept|Sep|Oct|Nov|Dec)\b\.?)")
WEEKDAY = r"(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)days?"
DAY = r"\d{1,2}(?:st|nd|rd|th)?"
SPELT = ("two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen"
         "|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety")
NUMBER = rf"(?:\d+(?:[.,]\d+)?|{SPELT})"
SPACE = r"\s{1,3}"
WHEN = (rf"(?:(?i:on|in|of|from|since|by|during|until|till|before|after|circa|around|at|for|between|dated){SPACE})?"
        rf"(?:(?i:the|last|next|this|past|early|late|mid|every|about|over){SPACE}){{0,2}}")
DATES = "|".join((
    rf"(?:{WEEKDAY},?{SPACE})?{MONTH}{SPACE}{DAY}(?:,?{SPACE}{YEAR})?",
    rf"(?:{WEEKDAY},?{SPACE})?{DAY}{SPACE}(?:of{SPACE})?{MONTH}(?:,?{SPACE}{YEAR})?",
    rf"{MONTH},?{SPACE}{YEAR}",
    r"\d{4}-\d\d?-\d\d?", r"\d{1,2}[./-]\d{1,2}[./-](?:\d{4}|\d\d)",
    rf"{YEAR}(?:{SPACE}?[-–/]{SPACE}?(?:{YEAR}|\d\d))?(?:'?s)?",
    rf"{WEEKDAY}(?:{SPACE}(?:morning|afternoon|evening|night))?",
    r"\d{1,2}(?:st|nd|rd|th)[ -]century",
    rf"\d{{1,2}}(?::\d\d){{1,2}}(?:{SPACE}?[ap]\.?m\b\.?)?", rf"\d{{1,2}}{SPACE}?[ap]\.?m\b",
    rf"{NUMBER}[ -](?:second|minute|hour|day|week|weekend|month|year|decade|centur)(?:s|y|ies)?(?:[ -](?:old|long|ago))?",
))
DATED = re.compile(rf"(?<![\w./-])(?P<when>{WHEN})(?:{DATES})(?![\w/-]|\.\d)"
                   rf"|(?<!\w)(?i:in|during|since|until|by|from){SPACE}(?:(?:early|late|mid|last){SPACE})?{MONTH}(?!\w)")
"""Dates and durations with the preposition before them; a month alone only behind one. Every repetition has an end: linear."""
HINT = re.compile(rf"\d|day|year|month|week|hour|minute|second|decade|centur|{MONTH}")
"""What every date has: most captions have none of it."""
COUNT = re.compile(rf"(?:{NUMBER}|\d[\d.,x×]*)\Z", re.IGNORECASE)
UNIT = ("px|pixels?|mm|cm|m|km|ft|feet|foot|inch|inches|yards?|miles?|kg|g|lbs?|oz|ml|l|lit(?:re|er)s?|mph|kmh|hp|cc|[mgt]b|mp"
        "|megapixels?|dpi|k|k?w|watts?|v|volts?|percent|degrees?")
IS_UNIT = re.compile(rf"(?:{UNIT})\Z", re.IGNORECASE)
WITH_UNIT = re.compile(rf"\d[\d.,x×]*-?(?:{UNIT})\Z", re.IGNORECASE)
JOINS = frozenset(["or", "and", "to", "is", "are", "was", "were", "x"])
"""No adjectives: what stands between a number and a noun that it does not count."""
PARTED = re.compile(r"[\s%°\"'’-]{0,4}\Z")
LOOSE = ((re.compile(r"[(\[]\s*[)\]]"), " "), (re.compile(r"\s+"), " "), (re.compile(r" (?=[,.;:!?)])"), ""),
         (re.compile(r"([,;:])(?:[,;:])+"), r"\1"))
"""What a cut leaves behind: empty brackets, double spaces, spaces before a comma, two commas."""
Span = tuple[int, int]


@step(adds={"caption_trim": string, "num_trims": int32})
class CaptionTrim:
    """The caption without dates, durations, and the numbers, units and proper nouns before a noun; how many were cut, 0 or more.

    CC3M (ACL P18-1238, section 3.4), before it puts hypernyms: "a Nikon camera" becomes "a camera", "two dogs on the beach in
    June 2011" becomes "dogs on the beach". Its third rule, places behind a preposition, is hypernym's `cut`. The paper does not
    say how they are found; it has a service of Google's. Here a date or duration goes with the preposition before it, names and
    numbers where a common noun follows: "the Eiffel Tower" stays for hypernym. English only.

    `tagger: stand_in` finds dates and durations by patterns (days, months with a day, year or preposition, years 1500 to 2099,
    weekdays, times, "three weeks", "5-year-old") and nouns by lists, as caption_tags does: a name at the beginning is a noun to
    it. `tagger: spacy:en_core_web_sm` takes what a model calls DATE or TIME too, where a digit or a preposition says that it is
    one ("a summer day" stays), and its nouns. The stand-in changes 25 % of 10,000 alt texts of LAION-400M, and 0.9 % of the
    15,839 captions of CC3M's validation set, which have been through the paper's own service.
    """

    def __init__(self, *, tagger: Tagger = STAND_IN) -> None:
        self._tagger = taggers.made(tagger, "caption_trim", names=True)

    def __call__(self, caption: list[str]) -> dict[str, list[str] | list[int]]:
        answers = [_without(text, [*_dates(text, words, names), *_modifiers(text, words)])
                   for text, (words, names) in zip(caption, self._tagger.words(caption), strict=True)]
        return {"caption_trim": [text for text, _ in answers], "num_trims": [number for _, number in answers]}


def _dates(text: str, words: Sequence[Word], names: Sequence[Name]) -> Iterator[Span]:
    """Dates and durations, with the preposition before them; in "the 1960s house" and "at the 19th century tower" the date."""
    places = {word.first: n for n, word in enumerate(words)}
    for found in DATED.finditer(text) if HINT.search(text) else ():
        n = places.get(found.end() + text[found.end() : found.end() + 1].isspace())
        is_modifier = n is not None and words[n].tag == NOUN and (found["when"] or "").lower().rstrip().endswith("the")
        if n is None or words[n].text != "of":
            yield (found.end("when") if is_modifier else found.start()), found.end()
    for name in names:
        n = places.get(name.first, 0) if name.label in ("DATE", "TIME") else 0
        first = words[n - 1].first if n and words[n - 1].tag == DETERMINER else name.first
        n -= first != name.first
        behind = n > 0 and words[n - 1].tag == PREPOSITION
        if name.label in ("DATE", "TIME") and (behind or any(char.isdigit() for char in text[name.first : name.last])):
            yield (words[n - 1].first if behind else first), name.last


def _modifiers(text: str, words: Sequence[Word]) -> Iterator[Span]:
    """Runs of numbers, units and proper nouns before a common noun, with the space after them; after numbers there may be up to
    two adjectives before it."""
    n = 0
    while n < len(words):
        begin, number = n, -1
        while n < len(words) and (words[n].tag == PROPER or _counts(words[n]) or (n > begin and _is_unit(words, n))) \
                and (n == begin or _meet(text, words, n)):
            number = n if _counts(words[n]) else number
            n += 1
        if n == begin:
            n += 1
            continue
        noun = n
        while number == n - 1 and noun < min(n + 2, len(words)) and words[noun].tag == WORD and _meet(text, words, noun) \
                and words[noun].text not in JOINS:
            noun += 1
        if noun < len(words) and words[noun].tag == NOUN and _meet(text, words, noun):
            yield words[begin].first, words[n].first


def _counts(word: Word) -> bool:
    return bool(COUNT.match(word.text) or WITH_UNIT.match(word.text))


def _is_unit(words: Sequence[Word], n: int) -> bool:
    return IS_UNIT.match(words[n].text) is not None and bool(COUNT.match(words[n - 1].text))


def _meet(text: str, words: Sequence[Word], n: int) -> bool:
    """Whether nothing but a space, a hyphen or a sign of a unit is between a word and the one before it."""
    return bool(PARTED.match(text[words[n - 1].last : words[n].first]))


def _without(text: str, spans: list[Span]) -> tuple[str, int]:
    """The text without the spans (where they meet, they are one), and how many these are."""
    merged: list[Span] = []
    for first, last in sorted(spans):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    if not merged:
        return text, 0
    ends = [0, *(last for _, last in merged)]
    starts = [*(first for first, _ in merged), len(text)]
    left = "".join(text[a:b] for a, b in zip(ends, starts, strict=True))
    for loose, instead in LOOSE:
        left = loose.sub(instead, left)
    return left.strip(" ,;:-–—|/"), len(merged)
