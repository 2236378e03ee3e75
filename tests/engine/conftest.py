"""Tests in live/ run vLLM, in an environment of their own: `make test-engine`."""

collect_ignore = ["live"]
