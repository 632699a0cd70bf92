"""Other simulators doing the same works, each as fast as it can be made here."""
