"""Columns of a head's statistics, [..., 3 + G], in whichever way they are computed."""

# Attention on the image, its entropy H_mass (nats), whether the gate is open, and from here on the
# unsteered attention on each group of keys.
MASS, ENTROPY, GATE, GROUP = 0, 1, 2, 3
