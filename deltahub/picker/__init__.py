"""Web pages: a model's tree as an HTML file, and the picker page to choose modules."""
