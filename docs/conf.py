"""How the documentation is built: `make docs`, from the root of the repository.

The root is the source folder, so that a link from a page to a committed table is the same link on
the site and in the repository. Pages with code cells run while they are built.
"""

import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Small networks: threads of two pages that are built at once would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

project = "realspike"
author = "the authors of realspike"
project_copyright = "the authors of realspike"
# Read, not imported: a test reads this file where neither Sphinx nor the extension is needed.
version = release = re.search(
    r'__version__ = "(.+)"', (ROOT / "realspike_ops" / "_version.py").read_text()
).group(1)

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
root_doc = "docs/index"
include_patterns = ["docs/**", "bench/results/**", "CHANGELOG.md", "CONTRIBUTING.md"]
exclude_patterns = [".*", "build", "dist", "runs", "**/*.json"]

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_execution_timeout = 300  # seconds of one cell
nb_merge_streams = True

default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_default_options = {
    "members": True,
    "inherited-members": "Module, Exception, ValueError, tuple",
    "exclude-members": "forward, extra_repr",
}
autodoc_typehints = "none"  # the signature has them, and the comments beside it shapes
autodoc_preserve_defaults = True
napoleon_use_ivar = True
napoleon_use_rtype = False
add_module_names = False

html_theme = "furo"
html_title = f"realspike {version}"
html_copy_source = False
html_show_copyright = False
html_math_renderer = "mathml"


def visit_math(self, node):
    """Write a formula as MathML, which browsers draw by themselves: no script, no network."""
    from docutils import nodes
    from latex2mathml.converter import convert

    if isinstance(node, nodes.math_block):  # an empty line parts two formulas
        for formula in node.astext().strip().split("\n\n"):
            block = convert(formula, display="block")
            self.body.append(f'<div style="overflow-x: auto">{block}</div>')
    else:
        self.body.append(convert(node.astext()))
    raise nodes.SkipNode


def lead_to_the_first_page(app, failure):
    """Whoever opens the folder of the site is sent on; its pages lie as the repository's do."""
    if not failure and app.builder.format == "html":
        page = f'<meta http-equiv="refresh" content="0; url={root_doc}.html">'
        (Path(app.outdir) / "index.html").write_text(page)


def setup(app):
    app.connect("build-finished", lead_to_the_first_page)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
