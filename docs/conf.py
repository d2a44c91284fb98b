"""The documentation site: ``nox -s docs``."""

from __future__ import annotations

import os
import re
import sys
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import NoUri

import sa_isolated_tasks

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

project = "sa-isolated-tasks"
author = "The sa-isolated-tasks developers"
project_copyright = author
release = version = version_of(project)

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "diagram"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = False

# Headings have the anchors that they have where the repository is shown, so that one link is right in both.
myst_heading_anchors = 3
myst_links_external_new_tab = False

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_type_aliases = {"Factory": "Factory"}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
default_role = "py:obj"
nitpicky = True

# Types of Python and of SQLAlchemy are links only where their inventories can be reached.
if os.environ.get("DOCS_INTERSPHINX"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "sqlalchemy": ("https://docs.sqlalchemy.org/en/21", None),
    }
nitpick_ignore_regex = [
    ("py:.*", r"(_?asyncio|collections|contextlib|contextvars|enum|types|typing|sqlalchemy)\..*"),
    # Builtins, and what the annotations of the package call the types of others.
    ("py:.*", r"(bool|int|float|str|object|type|tuple|UserWarning|ValueError|TypeError|Exception|BaseException|None)"),
    ("py:.*", r"(TimeoutError|BaseExceptionGroup|ExceptionGroup|asyncio\.InvalidStateError)"),
    ("py:.*", r"(AsyncSession|Session|Callable|Coroutine|Concatenate|Generator|TracebackType|Any|Self)"),
    # Type variables, and what a decorator is to a type checker.
    (
        "py:.*",
        r"(sa_isolated_tasks\._\w+\.)?(P|R|R_co|OwnerT|OwnerT_co|SessionT|_Decorator|_MethodDecorator)(\.k?w?args)?",
    ),
]

# Files of the repository that the site has under a name of its own. Others are in no site: their names are shown.
PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md"}
_OUTSIDE = re.compile(r"\[(?P<text>[^\]]+)\]\((?P<target>\.\./[^)]+|[A-Z]+\.md)\)")
_PRIVATE = re.compile(r"^sa_isolated_tasks\._\w+\.")


def links_out_of_the_site(_app: Sphinx, *names_and_source: Any) -> None:
    """A link to a file of the repository becomes one to its page, or the file's name."""

    def replaced(match: re.Match[str]) -> str:
        page = PAGES.get(match["target"].removeprefix("../"))
        return match["text"] if page is None else f"[{match['text']}]({page})"

    source = names_and_source[-1]
    source[0] = _OUTSIDE.sub(replaced, source[0])


def public_name(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement) -> Any:
    """An annotation names a type by the private module that it is defined in; the page has it by its public name."""
    target = node["reftarget"]
    name = target.removeprefix("sa_isolated_tasks.") if target.startswith("sa_isolated_tasks.") else target
    name = _PRIVATE.sub("", target) if _PRIVATE.match(target) else name
    if name.partition(".")[0] not in sa_isolated_tasks.__all__:
        return None
    domain = env.domains["py"]
    for role in ("obj", "attr", "meth"):
        found = domain.resolve_xref(env, node["refdoc"], app.builder, role, f"sa_isolated_tasks.{name}", node, content)
        if found is not None:
            return found
    raise NoUri


def setup(app: Sphinx) -> None:
    app.connect("source-read", links_out_of_the_site)
    app.connect("include-read", links_out_of_the_site)
    app.connect("missing-reference", public_name)
