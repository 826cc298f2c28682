"""Pages: a model's tree as a file, and the page on which its modules are chosen."""
