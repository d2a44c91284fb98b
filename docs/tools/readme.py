"""
What a package index makes of the README: ``python docs/tools/readme.py OUT.html``.

The text is that of the installed package, which differs in its links; it fails if there is one that leads nowhere.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import metadata
from pathlib import Path

from readme_renderer.markdown import render


def main(target: Path) -> None:
    text = metadata("sa-isolated-tasks")["Description"]
    rendered = render(text)
    if rendered is None:
        sys.exit("the README cannot be rendered")
    relative = [
        link for link in re.findall(r'(?:href|src)="([^"]*)"', rendered) if "://" not in link and link[:1] != "#"
    ]
    if relative:
        sys.exit(f"links that lead nowhere outside of the repository: {', '.join(relative)}")
    target.write_text(f'<!doctype html><meta charset="utf-8"><title>README</title>{rendered}', encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
