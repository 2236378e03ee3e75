"""The split `chain`: the second place to read is known only when the first has been read."""
