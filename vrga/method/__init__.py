"""The method as the papers give it: each step one function, on plain tensors."""
