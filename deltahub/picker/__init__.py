"""The page on which the modules of a model are chosen."""
