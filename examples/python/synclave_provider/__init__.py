"""What a provider in Python is made of, whatever it stores: copy this directory and build on it. See README.md beside it."""
from .provider import Provider, serve_provider
from .replica import Changed, Item, Replica
from .serving import replace_file, serve

__all__ = ["Changed", "Item", "Provider", "Replica", "replace_file", "serve", "serve_provider"]
