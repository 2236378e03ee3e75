"""The local page: ask about a picture, and see where the model looks (extra `app`: Gradio)."""
