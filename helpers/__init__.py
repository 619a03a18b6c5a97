"""Exact, explained memory figures for local language models.

Importing this package is light: every heavy library is imported in one room, when it is used.
"""

__version__ = "0.1.0"
