"""The kinds of things that a caption names: what CC3M counts over all captions."""

import pyarrow as pa

from curate.captions import tagger as taggers
from curate.captions.tagger import NOUN, STAND_IN, Tagger
from curate.captions.words import stem
from curate.step import int32, step, string


@step(adds={"entities": pa.list_(string), "num_entities": int32})
class CaptionEntities:
    """The common nouns of the caption, in lower case and without a plural s, each once, sorted; and how many, 0 or more.

    CC3M (ACL P18-1238, section 3.4), behind the hypernyms: "another round of text analysis and entity resolution", by a service
    of Google's, finds types such as "actor", "dog", "neighborhood", and `entity_count` counts them. Here the nouns are taken for
    types: a hypernym is one too, a name that has none is not. A noun of two words ("polar bear") is two types. Endings go as in
    `label_match`. `tagger` as in `caption_tags`: stand_in, or spacy:MODEL.
    """

    def __init__(self, *, tagger: Tagger = STAND_IN) -> None:
        self._tagger = taggers.made(tagger, "caption_entities")

    def __call__(self, caption: list[str]) -> dict[str, pa.Array]:
        found = [sorted({stem(word.text.lower()) for word in words if word.tag == NOUN})
                 for words, _ in self._tagger.words(caption)]
        return {"entities": pa.array(found, pa.list_(string)), "num_entities": pa.array([len(names) for names in found], int32)}
