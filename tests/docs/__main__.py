"""`make docs`: writes the generated pages of docs/, and says which of them changed."""

from pathlib import Path

from tests.docs import PAGES

DOCS = Path(__file__).resolve().parents[2] / "docs"


def main() -> None:
    for name, page in PAGES.items():
        path, text = DOCS / name, page()
        changed = not path.exists() or path.read_text() != text
        if changed:
            path.write_text(text)
        print(f"docs/{name}: {'written' if changed else 'as it was'}")


if __name__ == "__main__":
    main()
