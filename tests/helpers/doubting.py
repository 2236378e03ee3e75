"""The method in loops, steering where the model is uncertain; entropies in float64."""

from replay import Relocated


class Doubting(Relocated):
    """Hears the model's own logits, and decides of each step by the last of them.

    Args:
        gain: at the steps that are steered.
        threshold: nats from which a distribution is uncertain.
        when, relocate: as of VRGAConfig.
    """

    def __init__(self, model, gain, threshold, when="uncertain", relocate="question"):
        super().__init__(model, [], set())
        self.when, self.relocate = when, relocate
        self.full, self.threshold, self.entropies = gain, threshold, []

    def turn(self, *args, **more):
        handle = self.model.register_forward_hook(self._hear)
        try:
            return super().turn(*args, **more)
        finally:
            handle.remove()

    def _hear(self, module, args, output):
        if self.query is not None:
            self.entropies = []  # a prompt: its answer begins
            self.gains, self.steps = [], 0
        logs = output.logits[0, -1].double().log_softmax(-1)
        self.entropies.append(float(-(logs.exp() * logs).sum()))

    def _attend(self, module, *args, **kwargs):
        if self.query is None and module.layer_idx == 0:
            unsure = [nats >= self.threshold for nats in self.entropies[-2:]]
            rises = self.relocate == "uncertain" and unsure in ([True], [False, True])
            if rises:
                self.at.add(len(self.gains))
            steered = (unsure[-1] or self.when == "always") and not rises
            self.gains.append(self.full if steered else 1.0)
        return super()._attend(module, *args, **kwargs)
