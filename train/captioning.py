"""How good the captions are that a model writes of held-out pictures: one each, against all that people wrote of it.

What the figures are is in `train.captions`; here a model meets pictures. What writes is imported when it is asked for: most
trainings write nothing, and transformers' BLIP takes a tenth of their start.
"""

from typing import TYPE_CHECKING

from train.captions import caption_figures
from train.config import Eval
from train.data import Index
from train.errors import ConfigError, DataError, WeightsError
from train.models.weights import Loaded
from train.pictures import decoded

if TYPE_CHECKING:
    from train.models.captioner import Captioner
    from train.models.coca_captioner import CocaCaptioner
    from train.models.sampling import Decoding

    Writer = Captioner | CocaCaptioner


def decoding(settings: Eval) -> "Decoding":
    """How the captions that are judged are made, one a picture: drawn as CapFilt draws its own, or with `caption_beams` searched.

    The draws are by the picture's identity in the data: the same weights and data give the same captions. BLIP's released code
    punishes repetition by 1.1 where it samples and not at all (1) where it searches.
    """
    from train.models.sampling import Decoding

    prompt, beams = settings.caption_prompt or "", settings.caption_beams
    return Decoding(prompt=prompt) if beams is None else Decoding(prompt=prompt, beams=beams, repetition_penalty=1.0)


def writer(loaded: Loaded, settings: Eval) -> "Writer | None":
    """What writes the captions that `settings` ask for; None where they ask for none.

    Raises ConfigError where the model writes none, or not in that way.
    """
    if settings.captions is None:
        return None
    from train.models.captioner import captioner

    try:
        return captioner(loaded, decoding(settings))
    except (ConfigError, WeightsError) as error:
        raise ConfigError(str(error), "eval.captions") from None


def written_figures(writer: "Writer", rows: Index, batch: int = 64) -> dict[str, float]:
    """`caption_figures` of one caption a picture, each named `caption_…`; broken pictures are left out.

    Raises DataError where no picture can be decoded.
    """
    made: list[str] = []
    numbers: list[int] = []
    for chunk in decoded((rows.read(i) for i in range(len(rows))), batch):
        found = writer.captions([picture for _, picture in chunk], [f"{rows.identity[i]:016x}" for i, _ in chunk])
        numbers += [i for i, _ in chunk]
        made += [texts[0] for texts in found]
    if not made:
        raise DataError("captions: no picture can be decoded")
    figures = caption_figures(made, [rows.captions(i) for i in numbers])
    return {f"caption_{name}": value for name, value in figures.items()}
