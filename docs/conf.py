"""The documentation as a site: `make site`. Pages are Markdown and readable where they lie."""

project = "scpo_ray"
author = "the scpo_ray authors"
extensions = ["myst_parser", "sphinx_copybutton"]
# From the repository's root: pages link to each other as files do.
root_doc = "docs/index"
include_patterns = ["README.md", "docs/*.md", "cluster/*.md", "benchmarks/README.md"]
myst_heading_anchors = 3
myst_enable_extensions = ["deflist", "html_image"]
html_theme = "furo"
html_title = "scpo_ray"
html_copy_source = False
copybutton_exclude = ".linenos, .gp"
