"""Training a model to look back (arXiv 2507.03019): rollouts, rows, SFT, GRPO, report.

R/rollouts/     the model's own answers to each question, with their scores
R/data/         which of them became rows, and why the others did not
R/sft/, R/rl/   checkpoints of TRL's trainers, and the model at the end of each
R/evaluation/   answers to held-out questions, before and after
R/report.html   what was rewarded, and whether it was earned
"""
