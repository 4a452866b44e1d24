"""The generated half of docs/: `make docs` writes it, tests/test_docs.py holds it against what the code says now."""

from collections.abc import Callable

from tests.docs.commands import commands_page
from tests.docs.settings import settings_page
from tests.docs.steps import steps_page

PAGES: dict[str, Callable[[], str]] = {"commands.md": commands_page, "steps.md": steps_page, "settings.md": settings_page}
"""A file of docs/, and what makes its text: the same text for the same code."""
