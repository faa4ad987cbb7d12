"""The models: visual transformers, the ResNets around them, and their registry."""
