"""Evaluation: asking a model many questions, with and without VRGA, and scoring what it says."""
