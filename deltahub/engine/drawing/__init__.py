"""Drawings of a model: the folded module tree, for the terminal, as SVG and for the web page."""
