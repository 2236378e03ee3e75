"""Speed and memory, always against the unpatched model or other kernels in the same run."""
