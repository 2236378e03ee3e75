"""How the model for `fine` finds and looks closer; chosen on validation questions."""

from dataclasses import replace

from vrga.closer.zoom import Zoom
from vrga.config import VRGAConfig

# Every number that is read, so that it does not move with the package's defaults: the few tokens
# that stand out, since on 36 tokens the published region is two thirds of the picture.
FINDING = VRGAConfig(
    gain=3.0,
    gate="static",
    efr_percentile=15.0,
    focus_percentile=70.0,
    background_layers=0.1,
    background_focus=0.01,
    background_weight=1.0,
    sink_fraction=0.2,
    sink_border="background",
    region_std=2.0,
    region_min=1,
    dilation=0,
)
# Two crops at most, together of at most three times the tokens of the first look. They are sought
# in the whole map: the sink border of so small a grid is a fifth of it, and cards lie there too.
# Steering changes no answer of the second look.
CLOSER = Zoom(
    crops=2, threshold=0.45, within="map", margin=0.0, least=112, pixels=108 * 28 * 28, steer="off"
)
# At each <back>, whose place is found in steps that are steered.
AT_BACK = replace(CLOSER, threshold=0.35, pixels=72 * 28 * 28, steer="place")
