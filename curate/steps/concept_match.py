"""Which entries of a long list of concepts stand in the caption: what MetaCLIP balances by."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.captions.words import read_list
from curate.errors import UserError
from curate.step import File, int32, step, string

APART = r"([,.;:?!`])"


@step(adds={"concepts": pa.list_(string), "num_concepts": int32}, batch=10_000)
class ConceptMatch:
    """The entries of the list that the caption contains, each once, in the list's order, and how many these are, 0 or more.

    The rule of MetaCLIP (arXiv 2309.16671, section 3.2): `, . ; : ? ! backtick` become words of their own, tabs and line breaks
    spaces, and an entry is in the caption where it stands in it between two spaces. So `dog` is in "A dog." and neither in
    "dogs" nor in "Dog": case counts, unless ignore_case. MetaCLIP's list has 500,000 entries (WordNet synsets, frequent words,
    bigrams and titles of Wikipedia); the list here is the user's, one entry a line or a JSON list. An entry with one of those
    marks in it is never found, as there. All are searched for at once (Aho-Corasick), in time linear in the caption; 500,000
    take 3 s to build and 460 MB a worker. `balance` draws by the result.

    Words of a class list (DataComp's text based filter) that are phrases, like "hot dog", are found by it as well.
    """

    def __init__(self, *, entries: File, ignore_case: bool = False) -> None:
        import ahocorasick  # type: ignore[import-not-found]

        self._ignore_case = ignore_case
        self._search = ahocorasick.Automaton()
        names: dict[str, int] = {}
        for _, name in read_list("concept_match", entries):
            spaced = " ".join(name.split())
            self._search.add_word(f" {spaced.lower() if ignore_case else spaced} ", names.setdefault(name, len(names)))
        if not names:
            raise UserError(f"step 'concept_match': {entries} has no entry")
        self._search.make_automaton()
        self._names = pa.array(names, string)

    def __call__(self, caption: pa.Array) -> dict[str, pa.Array]:
        texts = pc.replace_substring_regex(pc.replace_substring_regex(caption, r"[\t\n\r]", " "), APART, r" \1 ")
        lines = pc.utf8_lower(texts) if self._ignore_case else texts
        whole = " " + " \n ".join(lines.to_pylist()) + " "
        starts = np.cumsum(pc.utf8_length(lines).to_numpy(zero_copy_only=False).astype(np.int64) + 3)
        found = np.array(list(self._search.iter(whole)), np.int64).reshape(-1, 2)
        row = np.searchsorted(starts, found[:, 0], side="right")
        pairs = np.unique(row * len(self._names) + found[:, 1])
        row, entry = np.divmod(pairs, len(self._names))
        num = np.bincount(row, minlength=len(caption))
        ends = pa.array(np.concatenate([[0], np.cumsum(num)]), pa.int32())
        return {"concepts": pa.ListArray.from_arrays(ends, self._names.take(pa.array(entry))), "num_concepts": num}
