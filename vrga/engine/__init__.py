"""VRGA inside vLLM: a plug-in that steers the requests that ask for it."""
