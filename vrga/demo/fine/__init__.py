"""The split `fine`: what is asked for is too small to read where the model first looks."""
