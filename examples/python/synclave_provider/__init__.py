"""What a provider in Python is made of, whatever it stores: copy this directory and build on it. See README.md beside it."""
