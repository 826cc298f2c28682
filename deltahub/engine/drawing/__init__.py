"""Pictures of a model: the folded tree, for the terminal, as SVG and for the page."""
