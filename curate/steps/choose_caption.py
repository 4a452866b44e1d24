"""Which of a picture's texts it is trained with: the web's, a synthetic one, several, or none."""

from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from curate.captions.choosing import NEEDS, Rule, Text, chooser, chosen_of, number, source_of
from curate.errors import UserError
from curate.step import Chunks, Maker, float32, float64, int32, string, whole

MAKERS = {"itm_web": "blip_match", "itm_synthetic": "blip_match", "clip_cos": "clip_score", "caption": "a source with captions",
          "clip_cos_synthetic": "clip_score_texts"}
RECORD = pa.struct([("text", string), ("source", string), ("model", string), ("decoding", string), ("itm", float64),
                    ("clip_cos", float64), ("faults", string), ("is_chosen", pa.bool_())])
ADDS = {"captions": pa.list_(string), "chosen_caption": string, "num_captions": int32, "caption_source": string,
        "chosen_itm": float32, "chosen_clip_cos": float32, "caption_provenance": pa.list_(RECORD)}


def _completes(settings: Mapping[str, Any], makers: Mapping[str, Maker]) -> Mapping[str, Any]:
    """Refuses a rule whose columns nobody adds, and fixed thresholds on scores of the loop's weights."""
    rule = settings["rule"]
    missing = [name for name in NEEDS[rule] if name not in makers]
    if missing:
        raise UserError(f"step 'choose_caption': rule {rule} goes by {' and '.join(NEEDS[rule])}; put {MAKERS[missing[0]]} "
                        "before it, or name other columns with of: or reads:")
    if any(makers[name].loop for name in NEEDS[rule] if name.startswith("itm")):
        raise UserError("step 'choose_caption': ITM depends on the weights that the loop trains, so a fixed threshold means "
                        "something else every round")
    return settings


@whole(adds=ADDS, completes=_completes)
def choose_caption(uid: Chunks, caption: Chunks | None, synthetic_captions: Chunks | None, synthetic_model: Chunks | None,
                   synthetic_decoding: Chunks | None, synthetic_faults: Chunks | None, itm_web: Chunks | None,
                   itm_synthetic: Chunks | None, clip_cos: Chunks | None, clip_cos_synthetic: Chunks | None, *,
                   rule: Rule = "capfilt", itm: Annotated[float, Field(ge=0, le=1)] = 0.5,
                   top: Annotated[float, Field(gt=0, le=1)] = 0.3) -> Generator[dict[str, list[Any]], None, dict[str, Any]]:
    """The texts that the picture keeps, best first, maybe none; the first of them with its scores; whence; and all of the rest.

    capfilt: every text with ITM of at least itm, so the web's, the synthetic one, both or none (BLIP, arXiv 2201.12086, section
    3.3; 0.5 by its author, issue 46). nguyen_mix: the web's text where its clip_cos is among the `top` share of those here, else
    the synthetic one of largest cosine if that reaches the same cosine (Nguyen et al. 2023, arXiv 2307.10350). blip2_top2: the
    two of largest cosine among web and synthetic ones; every picture stays (BLIP-2, arXiv 2301.12597, section 3.4: ten of a
    captioner, ranked by CLIP's ViT-L/14). web_only: the web's text as it came. With several candidates capfilt keeps all that
    pass: ours. A caption with synthetic_faults is never chosen: ours.

    `captions` is what train reads from a shard's json: one of them is drawn each time the picture is seen. `shards: {caption:
    chosen_caption}` makes the first one the .txt. `caption` stays as it came. caption_source is web, synthetic, both or none.
    caption_provenance has every text, chosen or not: source, hash of the captioner, decoding, scores, faults. How many synthetic
    captions the filter rejects stands in report and card. A column that is missing counts as unknown, and no rule goes by it
    unless it needs it. Some 14,000 rows a second on a loaded core; memory: 4 bytes a row.
    """
    columns = {"caption": caption, "synthetic_captions": synthetic_captions, "synthetic_model": synthetic_model,
               "synthetic_decoding": synthetic_decoding, "synthetic_faults": synthetic_faults, "itm_web": itm_web,
               "itm_synthetic": itm_synthetic, "clip_cos": clip_cos, "clip_cos_synthetic": clip_cos_synthetic}
    line = _line(clip_cos, top) if rule == "nguyen_mix" else None
    choose = chooser(rule, itm, line)
    tally = Counter[str]()
    for rows in _rows(uid, columns):
        chosen = [chosen_of(texts, choose) for texts in rows]
        for texts, kept in zip(rows, chosen, strict=True):
            tally.update(_counted(texts, kept, itm))
        yield _columns(rows, chosen)
    facts = {name: tally[name] for name in ("rows", "web", "synthetic", "both", "none", "captions", "web_judged", "web_below",
                                            "synthetic_judged", "synthetic_below")}
    return {"rule": rule, "itm": itm, **facts, **({"clip_cos": line} if line is not None else {})}


def _rows(uid: Chunks, columns: Mapping[str, Chunks | None]) -> Iterator[list[list[Text]]]:
    """The texts of every row, a list a shard."""
    there = {name: iter(chunks) for name, chunks in columns.items() if chunks is not None}
    for uids in uid:
        shard = {name: next(chunks).to_pylist() for name, chunks in there.items()}
        yield [_texts({name: values[row] for name, values in shard.items()}) for row in range(len(uids))]


def _texts(row: Mapping[str, Any]) -> list[Text]:
    synthetic = row.get("synthetic_captions") or []
    lists = [row.get(name) or [None] * len(synthetic) for name in ("itm_synthetic", "clip_cos_synthetic", "synthetic_faults")]
    found = [Text(row["caption"], "web", itm=number(row.get("itm_web")), clip_cos=number(row.get("clip_cos")))] \
        if (row.get("caption") or "").strip() else []
    return found + [Text(text or "", "synthetic", row.get("synthetic_model"), row.get("synthetic_decoding"), number(itm),
                         number(cos), faults) for text, itm, cos, faults in zip(synthetic, *lists, strict=True)]


def _line(clip_cos: Chunks | None, top: float) -> float | None:
    """The cosine of the last row of the best `top` of those that have one; None where that is none."""
    parts = [np.asarray(part.drop_null().to_numpy(zero_copy_only=False), np.float32) for part in clip_cos or ()]
    values: NDArray[np.float32] = np.concatenate([np.empty(0, np.float32), *parts])
    values = values[np.isfinite(values)]
    count = int(np.floor(top * len(values) + 1e-9))     # 0.29 of 100 are 29
    return number(np.partition(values, len(values) - count)[len(values) - count]) if count else None


def _counted(texts: Sequence[Text], kept: Sequence[Text], itm: float) -> Iterator[str]:
    """What a row adds to the facts: a name each time."""
    yield from ("rows", source_of(kept), *("captions" for _ in kept))
    for text in texts:
        if text.itm is not None:
            yield f"{text.source}_judged"
            if text.itm < itm:
                yield f"{text.source}_below"


def _columns(rows: Sequence[Sequence[Text]], chosen: Sequence[Sequence[Text]]) -> dict[str, list[Any]]:
    firsts = [kept[0] if kept else None for kept in chosen]
    return {"captions": [[text.text.strip() for text in kept] for kept in chosen],
            "chosen_caption": [first and first.text.strip() for first in firsts], "num_captions": [len(kept) for kept in chosen],
            "caption_source": [source_of(kept) for kept in chosen], "chosen_itm": [first and first.itm for first in firsts],
            "chosen_clip_cos": [first and first.clip_cos for first in firsts],
            "caption_provenance": [[_record(text, kept) for text in texts] for texts, kept in zip(rows, chosen, strict=True)]}


def _record(text: Text, kept: Sequence[Text]) -> dict[str, Any]:
    return {**{name: getattr(text, name) for name in RECORD.names if name != "is_chosen"},
            "is_chosen": any(text is one for one in kept)}
