"""Algebra over deltas: combine, compare, extract, resize and scale them, module by module, without a model."""
