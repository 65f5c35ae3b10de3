"""From an adapted student to a verified bundle: ONNX, class bank, TensorRT engines."""
