"""Look closer: find where the question looks, crop the original there, ask again."""
