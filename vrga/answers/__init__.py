"""One question answered from end to end, and the answer as a page."""
