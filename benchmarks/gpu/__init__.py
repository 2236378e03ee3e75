"""What is measured when a GPU is at hand for minutes: python -m benchmarks.gpu --help"""
