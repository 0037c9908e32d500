"""Composition root: command line, configuration, engine processes, supervision."""
