"""Everything that extends, fixes and drives semilearn: configuration, training loop, hooks, checkpoints."""
