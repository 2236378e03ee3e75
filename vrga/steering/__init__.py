"""A patched model: what a user holds of it, and what its forward passes do."""
