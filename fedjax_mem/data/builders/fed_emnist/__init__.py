"""FEMNIST, by writer, from the files of TensorFlow Federated."""
