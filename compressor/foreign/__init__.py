"""Networks that others wrote down: ONNX files read safely, rebuilt in torch, and compared with what they answer."""
