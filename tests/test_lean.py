"""pyarrow without pandas: nobody waits for it, and who uses it notices nothing."""

import subprocess
import sys

import pytest

WORKER = """
import sys
import curate.local
import pyarrow as pa
assert pa.array([1, 2]).to_pylist() == [1, 2]
assert not {"pandas", "aiohttp", "cv2"} & set(sys.modules), "only who asks the web and who decodes need them"
"""
SERIES = """
assert pa.array(pandas.Series([1, None]), pa.int32()).to_pylist() == [1, None], "a Series is one"
assert pa.table({"a": [1]}).to_pandas()["a"].sum() == 1
"""


@pytest.mark.parametrize("code", [
    WORKER + "import pandas" + SERIES,
    WORKER + "from importlib.util import find_spec; assert find_spec('pandas'); import pandas" + SERIES,
    WORKER + "assert pa.table({'a': [1]}).to_pandas()['a'].sum() == 1; import pandas" + SERIES,
    "import pandas, sys; before = [*sys.meta_path]; import curate.files, pyarrow as pa; assert before == sys.meta_path" + SERIES,
], ids=["imported", "looked for", "by pyarrow", "there before"])
def test_pandas_is_there_for_who_wants_it(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)
