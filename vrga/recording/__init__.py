"""What the heads did, step by step: recorded beside the answer, kept as a trace."""
