"""What a run leaves behind: bundle, ONNX file, latency figures, and how files get written."""
