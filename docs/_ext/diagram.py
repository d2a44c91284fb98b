"""
``diagram``: a drawing of characters, as SVG.

Why svgbob? Its wheel needs neither a system package nor the network, and its source is a drawing already where nothing
builds it: in an editor, and where the repository is shown. Why not the directive of ``sphinxcontrib.svgbob``? It makes
an image file, which cannot know the theme's colours; this puts the SVG into the page, and ``site.css`` colours it.
"""

from __future__ import annotations

import html
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinxcontrib.svgbob._svgbob import to_svg


class Diagram(SphinxDirective):
    """Its argument is what it shows, for those who do not see it."""

    has_content = True
    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        text = "\n".join(self.content)
        if self.env.app.builder.format != "html":
            return [nodes.literal_block(text, text)]
        label = html.escape(self.arguments[0], quote=True)
        svg = to_svg(text, include_styles=False).replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
        return [nodes.raw("", f'<figure class="diagram">{svg}</figure>', format="html")]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("diagram", Diagram)
    return {"version": "1", "parallel_read_safe": True}
