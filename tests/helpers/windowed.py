"""Models whose layers see a window of the keys."""

from tiny import tiny_model


def windowed(window):
    """A tiny Qwen2.5-VL whose second layer sees `window` keys."""
    model = tiny_model()
    text = model.config.get_text_config()
    text.use_sliding_window, text.sliding_window, text.max_window_layers = True, window, 1
    text.layer_types = ["full_attention", "sliding_attention", "full_attention"]
    model.model.language_model.has_sliding_layers = True
    layer = model.model.language_model.layers[1]
    layer.attention_type = layer.self_attn.layer_type = "sliding_attention"
    layer.self_attn.sliding_window = window
    return model
