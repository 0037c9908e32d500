"""Arithmetic: what a model needs, what a GPU gives, where it fits."""
