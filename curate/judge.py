"""What a round is judged by: retrieval on held-out pictures, and, where the truth is known, how its score finds mismatches."""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curate.errors import UserError
from curate.keep import KEPT, evaluate
from curate.loop_settings import LoopSettings
from curate.measure import Shard
from curate.pairs import left_at, of_source, write_pairs
from curate.pipeline import Pipeline
from curate.run import Outcome
from curate.sources.source import Source
from curate.stages import KeepUse, StepUse, TopUse
from curate.store import Store
from curate.training import Trainer


@dataclass
class Judge:
    """Holds the held-out table and the truth of one run."""

    store: Store
    source: Source
    pipeline: Pipeline
    raw: Outcome
    trainer: Trainer
    _truth: dict[tuple[str, str], bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.pipeline.loop is not None
        self._truth = _read_truth(self.pipeline.loop)
        self.held_out = self.store.root / "models" / f"held_out-{self.raw.data_digest(self.source)}.parquet"
        columns = of_source(self.raw.columns)     # judged by what the web says: no choice that the model learnt judges itself
        rows = write_pairs(self.store, self.source, columns, self.raw.chain, self.held_out, self._chosen)
        if not rows:
            raise UserError("nothing is held out: raise the share of the step 'held_out'")

    def figures(self, weights: str, outcome: Outcome) -> dict[str, float]:
        """recall_at_1, 5, 10 (mean of both directions, 0 to 1) on held-out pictures; where the truth is known also mismatch_auroc
        of the score over the raw pool, and how clean the kept rows are beside the pool."""
        found = dict(self.trainer.recall(weights, self.held_out))
        if self._truth:
            found |= self._against_truth(outcome)
        return {name: round(value, 6) for name, value in found.items()}

    def _chosen(self, shard: Shard) -> np.ndarray:
        """Held-out rows; where the truth is known only those that are right, so that a wrong caption does not count as a miss."""
        rows = left_at(_held_out_stage(self.pipeline))(shard)
        if not self._truth:
            return rows
        wrong = self._wrong(shard, rows)
        right: np.ndarray = rows[wrong == 0]
        return right

    def _against_truth(self, outcome: Outcome) -> dict[str, float]:
        """Over the raw pool's rows that the truth knows: AUROC of the score (right above wrong), clean share and clean recall."""
        scores, wrongs, kepts = [], [], []
        score = outcome.columns[_score_column(self.pipeline)]
        for number in range(self.source.num_shards):
            pool = Shard.at(self.store, self.source, number, self.raw.chain)
            rows = pool.kept.alive
            wrong = self._wrong(pool, rows)
            now = Shard.at(self.store, self.source, number, outcome.chain)
            values = now.column(score).to_numpy(zero_copy_only=False)[rows]
            known = (wrong >= 0) & np.isfinite(values.astype(np.float64))
            scores.append(values[known])
            wrongs.append(wrong[known] == 1)
            kepts.append((now.kept.state[rows] == 0)[known])
        return _rates(np.concatenate(scores), np.concatenate(wrongs), np.concatenate(kepts))

    def _wrong(self, shard: Shard, rows: np.ndarray) -> np.ndarray:
        """1 where the truth says mismatched, 0 where right, -1 where it does not know the row."""
        index = pa.array(rows)
        columns = self.raw.columns
        urls, captions = (shard.column(columns[n]).take(index).to_pylist() for n in ("url", "caption"))
        codes = {True: 1, False: 0, None: -1}
        return np.array([codes[self._truth.get(pair)] for pair in zip(urls, captions, strict=True)], np.int8)


def _rates(scores: np.ndarray, wrong: np.ndarray, kept: np.ndarray) -> dict[str, float]:
    from train.figures import auroc

    if not wrong.any() or wrong.all():
        raise UserError("the truth table knows no mismatched row of the pool, or only such")
    return {"mismatch_auroc": float(auroc(scores, ~wrong)),
            "pool_clean_share": float(np.mean(~wrong)),
            "kept_clean_share": float(np.mean(~wrong[kept])) if kept.any() else 0.0,
            "kept_clean_recall": float(np.sum(~wrong & kept) / np.sum(~wrong))}


def _read_truth(settings: LoopSettings) -> dict[tuple[str, str], bool]:
    if settings.truth is None or settings.mismatched is None:
        return {}
    table = pq.read_table(settings.truth, partitioning=None)
    for name in ("url", "caption"):
        if name not in table.column_names:
            raise UserError(f"loop.truth: {settings.truth} has no column '{name}'")
    wrong = evaluate(settings.mismatched, table.select(list(settings.mismatched.columns))).state == KEPT
    return dict(zip(zip(table["url"].to_pylist(), table["caption"].to_pylist(), strict=True), wrong.tolist(), strict=True))


def _held_out_stage(pipeline: Pipeline) -> int:
    return next(i for i, s in enumerate(pipeline.stages)
                if isinstance(s, KeepUse) and any(c.text == "not held_out" for c in s.keep.clauses))


def _score_column(pipeline: Pipeline) -> str:
    """The score that the loop decides by: the first rank over a column of its own, else its first cosine."""
    own = {name for s in pipeline.stages if isinstance(s, StepUse) and s.loop for name in s.adds.values()}
    for stage in pipeline.stages:
        if isinstance(stage, TopUse) and stage.by in own:
            return stage.by
    found = sorted(n for n in own if n.endswith("clip_cos"))
    if not found:
        raise UserError("the loop has no score to judge: put clip_score after its clip_embed")
    return found[0]
