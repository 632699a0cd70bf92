"""Fashion-MNIST from its published idx files."""
