"""The delta engine: inserting deltas into a backbone, finding, training and removing them."""
