"""`vrga analyze`: the measurements of the paper, on any model and any questions with boxes."""
