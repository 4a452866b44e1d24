"""Size and format of the stored picture, from its header: nothing is decoded."""

from curate.decoding.images import probe
from curate.step import float64, int32, int64, step, string

ADDS = {"width_px": int32, "height_px": int32, "aspect": float64, "num_pixels": int64, "image_bytes": int64, "format": string}


@step(adds=ADDS, batch=256)
def image_shape(image: list[bytes]) -> dict[str, list[int] | list[float] | list[str]]:
    """Width and height in pixels, longer side / shorter side (1 or more), pixels, bytes and format of the stored picture.

    The sides are as stored, before an EXIF orientation turns them; format is jpeg, png, webp or gif. Bytes that are no picture
    are quarantined. Rules on it, each with its own boundary: DataComp basic_filter (baselines/apply_filter.py): shorter side
    >= 200, aspect <= 3.0. ALIGN (arXiv 2102.05918, section 3): > 200 and < 3. CC3M (ACL P18-1238, section 3): both sides > 400,
    aspect <= 2; CC12M (arXiv 2102.08981): <= 2.5. LAION-400M and COYO-700M: 5000 bytes or more. They mean the picture on the web:
    after a download that resizes, that is original_width_px, original_height_px and num_bytes.
    """
    probed = [probe(data) for data in image]
    return {
        "width_px": [width for _, width, _ in probed],
        "height_px": [height for _, _, height in probed],
        "aspect": [max(width, height) / min(width, height) for _, width, height in probed],
        "num_pixels": [width * height for _, width, height in probed],
        "image_bytes": [len(data) for data in image],
        "format": [kind for kind, _, _ in probed],
    }
