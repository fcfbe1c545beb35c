"""One reward model per culture: SCPO (arXiv 2606.18606) as a system one can run."""

__version__ = "0.1.0"
