"""The embedded model: a tiny Qwen2.5-VL that reads the colours of letters on a grid."""
