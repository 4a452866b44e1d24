"""Whether a caption names a kind of thing that hardly any other caption names."""

from collections.abc import Iterator
from typing import Annotated

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from curate.captions.words import counted
from curate.step import Chunks, int32, int64, whole


@whole(adds={"num_rare_entities": int32, "rarest_entity_count": int64})
def entity_count(entities: Chunks, *, min_count: Annotated[int, Field(ge=1)] = 101) -> Iterator[dict[str, NDArray[np.int64]]]:
    """How many of the caption's entities stand in fewer than min_count captions, and in how many the rarest does; 0 without any.

    Over the rows alive here. CC3M (ACL P18-1238, section 3.4) keeps a pair if all its entity types have a count over 100, which
    some 55 % pass, with 16,000 types: `keep: num_rare_entities = 0`. On a pool of thousands nearly everything is rare: take a
    smaller min_count. Holds the distinct entities and their counts in memory.
    """
    counts = counted(entities)
    for lists in entities:
        row = pc.list_parent_indices(lists).to_numpy()
        count = counts["num"].to_numpy()[pc.index_in(pc.list_flatten(lists), counts["entry"]).to_numpy(zero_copy_only=False)]
        rarest = np.full(len(lists), np.iinfo(np.int64).max)
        np.minimum.at(rarest, row, count)
        yield {"num_rare_entities": np.bincount(row[count < min_count], minlength=len(lists)),
               "rarest_entity_count": np.where(np.bincount(row, minlength=len(lists)) == 0, 0, rarest)}
