"""CIFAR-100 on 500 clients, from the files of TensorFlow Federated."""
