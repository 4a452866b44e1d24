"""pyarrow without pandas, until somebody wants it.

Nothing of ours uses pandas, yet pyarrow imports it for the first array it makes of a list, to see whether the list is a Series:
half a second and 45 MB of every process. Here it finds none, until somebody else imports pandas; then it is told to look again.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

import pyarrow as pa


class _Watch:
    """Stands before the finders of modules until pandas is imported."""

    hidden = True

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Nothing for other modules. Raises ModuleNotFoundError while pandas is hidden."""
        if name != "pandas":
            return None
        if self.hidden:
            raise ModuleNotFoundError("pandas is looked for later")
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                pa.table({}).to_pandas()        # makes pyarrow look again

            spec.loader.exec_module = exec_module       # type: ignore[method-assign]
        return spec


def without_pandas() -> None:
    """Let pyarrow look for pandas now and find none; nothing where pandas is there already."""
    if "pandas" not in sys.modules and not any(isinstance(finder, _Watch) for finder in sys.meta_path):
        watch = _Watch()
        sys.meta_path.insert(0, watch)
        pa.array([None])
        watch.hidden = False


without_pandas()
