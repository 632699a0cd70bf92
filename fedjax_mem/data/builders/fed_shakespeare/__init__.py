"""Shakespeare, by character of a play, from the files of TensorFlow Federated."""
