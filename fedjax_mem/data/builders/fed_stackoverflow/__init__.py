"""Stack Overflow, by user, from the files of TensorFlow Federated."""
